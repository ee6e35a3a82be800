//! What a store answers: it marks a region that it leads, and tells its replica's hash.

use std::sync::Arc;

use bytes::Bytes;
use proto::{
    KeyRange, RegionId,
    wire::{HashLevel, HashNode, ReplicaHash, VerifyRequest, VerifyResponse},
};
use raftstore::{
    StoreHandle, Target,
    verify::{
        Tree, Verified,
        tree::{Hash, Level, Node},
    },
};

/// Answers for a store; the cluster was checked.
pub async fn answer(store: &StoreHandle, request: &VerifyRequest) -> VerifyResponse {
    let (region, mark) = (RegionId(request.region_id), request.mark);
    if let Some(epoch) = request.begin {
        let target = Target { region, epoch: epoch.into(), term: None };
        // The outcome of a mark may be unknown: it is asked for then, and may be there.
        let refusal = match store.mark(&target, mark).await {
            Err(raftstore::ProposeError::Region(error)) => error.to_string(),
            Ok(()) | Err(raftstore::ProposeError::Unknown(_)) => String::new(),
        };
        return VerifyResponse { refusal, hash: None };
    }
    match store.verified(region, mark) {
        Some(Verified { tree: Err(refusal), .. }) => VerifyResponse { refusal, hash: None },
        Some(Verified { region, index, tree: Ok(tree), .. }) => {
            let levels = if request.levels { tree.levels.iter().map(level).collect() } else { vec![] };
            let root = Bytes::copy_from_slice(&tree.root);
            let (region, index, records) = (Some((&*region).into()), index.0, tree.records);
            VerifyResponse { refusal: String::new(), hash: Some(ReplicaHash { region, index, records, root, levels }) }
        }
        None => VerifyResponse::default(),
    }
}

fn level(level: &Level) -> HashLevel {
    let node = |n: &Node| HashNode { start: n.start.clone(), hash: Bytes::copy_from_slice(&n.hash) };
    HashLevel { bits: level.bits, nodes: level.nodes.iter().map(node).collect() }
}

/// The tree in an answer; the reason when there is none.
pub(super) fn tree(hash: Option<ReplicaHash>) -> Result<Arc<Tree>, String> {
    let hash = hash.ok_or("it is gone")?;
    let range: KeyRange = hash.region.and_then(|r| r.range).ok_or("it has no range")?.into();
    let bytes = |hash: &[u8]| Hash::try_from(hash).map_err(|_| format!("a hash of {} bytes", hash.len()));
    let node = |n: HashNode| Ok::<_, String>(Node { hash: bytes(&n.hash)?, start: n.start });
    let level = |level: HashLevel| {
        let nodes = level.nodes.into_iter().map(node).collect::<Result<Vec<_>, _>>()?;
        if !nodes.is_sorted_by(|a, b| a.start < b.start) {
            return Err("hashes out of order".to_string());
        }
        Ok(Level { bits: level.bits, nodes })
    };
    let levels = hash.levels.into_iter().map(level).collect::<Result<Vec<_>, String>>()?;
    Ok(Arc::new(Tree { range, records: hash.records, root: bytes(&hash.root)?, levels }))
}
