//! The public KV service on real processes, with a generic gRPC client.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::StreamExt as _;
use proto::wire::{
    CompareAndSwapRequest, CreateNamespaceRequest, KeyChange, ListRequest, Namespace, NamespaceMode, ReadRequest,
    WriteRequest,
};
use server::rpc::stubs::public_kv_client::PublicKvClient;
use tests::{
    cluster::{Cluster, Node},
    wait,
};
use tonic::{Code, transport::Channel};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use super::placement::store_of;

/// Elections on a busy machine.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// Increments of each client before the split, before the kill, and after it.
const INCREMENTS: usize = 20;
const ROWS: usize = 1_500;

type Client = PublicKvClient<Channel>;

async fn connect(node: &Node) -> Result<Client> {
    let channel = Channel::from_shared(format!("http://{}", node.address()))?.connect().await?;
    Ok(PublicKvClient::new(channel))
}

async fn create(client: &mut Client, name: &str, mode: NamespaceMode) {
    let namespace = Some(Namespace { name: name.into(), mode: mode as i32 });
    client.create_namespace(CreateNamespaceRequest { namespace }).await.expect("a namespace is made");
}

async fn write(client: &mut Client, namespace: &str, changes: &[(&str, Option<&str>)]) -> Result<(), tonic::Status> {
    let change = |(key, value): &(&str, Option<&str>)| KeyChange { key: owned(key), value: value.map(owned) };
    let changes = changes.iter().map(change).collect();
    client.write(WriteRequest { namespace: namespace.into(), changes }).await.map(drop)
}

async fn read(client: &mut Client, namespace: &str, key: &str) -> Result<Option<String>, tonic::Status> {
    let request = ReadRequest { namespace: namespace.into(), keys: vec![owned(key)] };
    let pair = client.read(request).await?.into_inner().pairs.pop();
    Ok(pair.map(|p| String::from_utf8_lossy(&p.value).into_owned()))
}

fn owned(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// How increments ended; one whose answer was lost may have been made.
#[derive(Default)]
struct Counted {
    made: u64,
    unknown: u64,
}

/// Adds one to the counter until it has done so often enough.
async fn increment(mut client: Client, times: usize) -> Result<Counted> {
    let mut counted = Counted::default();
    let mut there: Option<Bytes> = None;
    while counted.made < times as u64 {
        let count: u64 = there.as_ref().map_or(Ok(0), |v| std::str::from_utf8(v)?.parse().context("a number"))?;
        let request = CompareAndSwapRequest {
            namespace: "things".into(),
            key: owned("counter"),
            expected: there.clone(),
            value: Some(owned(&(count + 1).to_string())),
        };
        match client.compare_and_swap(request).await.map(tonic::Response::into_inner) {
            Ok(done) if done.swapped => {
                counted.made += 1;
                there = Some(owned(&(count + 1).to_string()));
            }
            Ok(done) => there = done.current,
            Err(status) if status.code() == Code::Unknown => counted.unknown += 1,
            // Nothing was written.
            Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => {}
            Err(status) => return Err(status.into()),
        }
    }
    Ok(counted)
}

/// All clients increment at the same time.
async fn all_increment(clients: &[Client], total: &mut Counted) {
    let runs = clients.iter().map(|client| increment(client.clone(), INCREMENTS));
    for run in futures::future::join_all(runs).await {
        let run = run.expect("increments go on");
        total.made += run.made;
        total.unknown += run.unknown;
    }
}

async fn fill(client: &mut Client) {
    let body = "x".repeat(1_000);
    for chunk in (0..ROWS).collect::<Vec<_>>().chunks(500) {
        let keys: Vec<_> = chunk.iter().map(|i| format!("row{i:06}")).collect();
        let changes: Vec<_> = keys.iter().map(|key| (key.as_str(), Some(body.as_str()))).collect();
        write(client, "things", &changes).await.expect("rows are written");
    }
}

fn page(token: Bytes) -> ListRequest {
    ListRequest {
        namespace: "things".into(),
        start_key: owned("row"),
        end_key: owned("rox"),
        limit: 400,
        keys_only: true,
        token,
        ..ListRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_count_exactly_and_scans_go_on_through_a_split_and_a_kill() {
    let mut cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[0];
    let mut first = connect(node).await.expect("it listens");
    create(&mut first, "things", NamespaceMode::Strong).await;
    create(&mut first, "things", NamespaceMode::Strong).await;
    fill(&mut first).await;
    let second = connect(&cluster.nodes()[1]).await.expect("it listens");
    let clients = [first.clone(), second.clone(), first.clone(), second.clone()];
    let mut total = Counted::default();

    // The first page is of before the split, the others are of after it.
    let mut seen = BTreeSet::new();
    let mut list = first.list(page(Bytes::new())).await.expect("a page").into_inner();
    let id = wait::until("sizes are reported", CHANGE_LIMIT, || async {
        let list = node.ctl(&["region", "list", "--size", "--limit", "1"])?;
        let largest = list.as_array().and_then(|l| l.first()).context("a region")?;
        ensure!(largest["bytes"].as_u64() > Some(500_000), "{largest}");
        Ok(largest["id"].to_string())
    })
    .await;
    let split = async { node.ctl(&["region", "split", &id, "--at-half"]).expect("splits") };
    futures::future::join(split, all_increment(&clients, &mut total)).await;
    loop {
        seen.extend(list.pairs.into_iter().map(|p| p.key));
        if list.token.is_empty() {
            break;
        }
        list = first.list(page(list.token)).await.expect("a page").into_inner();
    }
    assert_eq!(seen.len(), ROWS);

    // The counter lies in the left half, which kept its id; its leader dies.
    let victim = store_of(node, &cluster.nodes()[2]).expect("it is there").to_string();
    node.ctl(&["scheduler", "disable", "balance-leader"]).expect("switches");
    node.ctl(&["region", "transfer-leader", &id, &victim]).expect("moves");
    let increments = tokio::spawn(async move {
        all_increment(&clients, &mut total).await;
        all_increment(&clients, &mut total).await;
        total
    });
    cluster.kill(2);
    let total = increments.await.expect("no panic");
    let mut second = second;
    let count = read(&mut second, "things", "counter").await.expect("reads").expect("a value");
    let count: u64 = count.parse().expect("a number");
    assert!((total.made..=total.made + total.unknown).contains(&count), "{count}, {} made", total.made);
    assert_eq!(total.made, 12 * INCREMENTS as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eventual_writes_need_no_other_node_and_arrive() {
    let mut cluster = Cluster::start_ready(3).await;
    let mut client = connect(&cluster.nodes()[0]).await.expect("it listens");
    create(&mut client, "events", NamespaceMode::Eventual).await;
    write(&mut client, "events", &[("a", Some("1")), ("b", Some("1"))]).await.expect("is accepted");
    assert_eq!(read(&mut client, "events", "a").await.expect("reads"), Some("1".into()), "one's own write");
    for node in cluster.nodes() {
        wait::until("it arrives everywhere", CHANGE_LIMIT, || async {
            let found = read(&mut connect(node).await?, "events", "a").await?;
            ensure!(found.as_deref() == Some("1"), "{found:?}");
            Ok(())
        })
        .await;
    }

    cluster.kill_all(&[1, 2]);
    write(&mut client, "events", &[("a", Some("2")), ("b", None)]).await.expect("is accepted alone");
    assert_eq!(read(&mut client, "events", "a").await.expect("reads"), Some("2".into()));
    assert_eq!(read(&mut client, "events", "b").await.expect("reads"), None);
    // What was accepted outlives the process.
    cluster.kill(0);
    (0..3).for_each(|n| cluster.start(n));
    for node in cluster.nodes() {
        wait::until("it arrives after all", CHANGE_LIMIT, || async {
            let mut client = connect(node).await?;
            let found = (read(&mut client, "events", "a").await?, read(&mut client, "events", "b").await?);
            ensure!(found == (Some("2".into()), None), "{found:?}");
            Ok(())
        })
        .await;
    }
    let mut client = connect(&cluster.nodes()[1]).await.expect("it listens");
    let list = ListRequest { namespace: "events".into(), ..ListRequest::default() };
    let rows = client.list(list).await.expect("a page").into_inner().pairs;
    assert_eq!(rows.iter().map(|p| p.key.clone()).collect::<Vec<_>>(), [owned("a")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_have_their_codes_and_reflection_knows_the_service() {
    let cluster = Cluster::start_ready(1).await;
    let node = &cluster.nodes()[0];
    let mut client = connect(node).await.expect("it listens");
    create(&mut client, "things", NamespaceMode::Strong).await;
    create(&mut client, "events", NamespaceMode::Eventual).await;

    let code = |result: Result<(), tonic::Status>| result.expect_err("refused").code();
    assert_eq!(code(write(&mut client, "nothing", &[("a", None)]).await), Code::NotFound);
    assert_eq!(code(write(&mut client, "No!", &[("a", None)]).await), Code::InvalidArgument);
    assert_eq!(code(write(&mut client, "things", &[]).await), Code::InvalidArgument);
    assert_eq!(code(write(&mut client, "things", &[("", None)]).await), Code::InvalidArgument);
    assert_eq!(code(write(&mut client, "events", &[("a", None), ("a", None)]).await), Code::InvalidArgument);
    let big = "x".repeat((1 << 20) + 1);
    assert_eq!(code(write(&mut client, "things", &[("a", Some(&big))]).await), Code::InvalidArgument);
    let other = Some(Namespace { name: "things".into(), mode: NamespaceMode::Eventual as i32 });
    let other = client.create_namespace(CreateNamespaceRequest { namespace: other }).await;
    assert_eq!(code(other.map(drop)), Code::AlreadyExists);
    assert_eq!(code(client.create_namespace(CreateNamespaceRequest::default()).await.map(drop)), Code::InvalidArgument);
    let swap = CompareAndSwapRequest { namespace: "events".into(), key: owned("a"), ..Default::default() };
    assert_eq!(code(client.compare_and_swap(swap).await.map(drop)), Code::FailedPrecondition);
    let list = ListRequest { namespace: "things".into(), token: owned("junk"), ..ListRequest::default() };
    assert_eq!(code(client.list(list).await.map(drop)), Code::InvalidArgument);

    let channel = Channel::from_shared(format!("http://{}", node.address())).expect("an address");
    let mut reflection = ServerReflectionClient::new(channel.connect().await.expect("it listens"));
    let question = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..ServerReflectionRequest::default()
    };
    let answers = reflection.server_reflection_info(futures::stream::iter([question])).await.expect("it answers");
    let answer = answers.into_inner().next().await.expect("an answer").expect("a good one").message_response;
    let Some(MessageResponse::ListServicesResponse(listed)) = answer else { panic!("{answer:?}") };
    assert!(listed.service.iter().any(|s| s.name == "flaredb.v1.PublicKv"), "{listed:?}");
}
