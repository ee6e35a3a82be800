//! psql and psycopg, as programs.

use std::process::{Command, Output};

use tests::cluster::{Cluster, Node};

fn psql(node: &Node, arguments: &[&str]) -> Output {
    let port = node.sql_port().to_string();
    Command::new("psql")
        .args(["-X", "-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-v", "ON_ERROR_STOP=1"])
        .args(arguments)
        .env_remove("PGOPTIONS")
        .output()
        .expect("psql is installed (apt-get install postgresql-client)")
}

fn said(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "psql failed:\n{out}{err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_in_psql() {
    let cluster = Cluster::start_ready(3).await;
    let node = &cluster.nodes()[0];
    let script = "CREATE TABLE people (id int PRIMARY KEY, name text, born date);
        INSERT INTO people VALUES (1, 'Ada', '1815-12-10'), (2, 'Grace', '1906-12-09'), (3, NULL, NULL);
        SELECT id, name, born FROM people ORDER BY id;
        UPDATE people SET name = 'Nobody' WHERE name IS NULL;
        SELECT count(*), max(name) FROM people;
        DELETE FROM people WHERE id = 3;";
    let out = said(psql(node, &["-A", "-c", script]));
    let expected = "CREATE TABLE\nINSERT 0 3\nid|name|born\n1|Ada|1815-12-10\n2|Grace|1906-12-09\n3||\n(3 rows)\n\
                    UPDATE 1\ncount|max\n3|Nobody\n(1 row)\nDELETE 1\n";
    assert_eq!(out, expected);
    assert!(said(psql(node, &["-c", r"\dt"])).contains("people"));
    assert!(said(psql(node, &["-c", r"\l"])).contains("postgres"));
    psqls_questions(node);
    let copied = said(psql(node, &["-c", r"\copy people TO STDOUT"]));
    assert_eq!(copied, "1\tAda\t1815-12-10\n2\tGrace\t1906-12-09\n");
    let explained = said(psql(&cluster.nodes()[2], &["-c", "EXPLAIN SELECT * FROM people WHERE id = 1"]));
    assert!(explained.to_lowercase().contains("region"), "{explained}");
    let failed = psql(node, &["-v", "VERBOSITY=verbose", "-c", "SELECT nothing FROM people"]);
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(error.contains("42703"), "the SQLSTATE: {error}");
    let misspelt = psql(node, &["-c", "SELECT 1 FRM people p WHERE"]);
    let error = String::from_utf8_lossy(&misspelt.stderr).into_owned();
    assert!(error.contains('^'), "the place: {error}");
}

/// The commands that begin with a backslash ask the system tables.
fn psqls_questions(node: &Node) {
    for command in [r"\d", r"\dt", r"\dt+", r"\l", r"\l+", r"\dn", r"\dn+", r"\du", r"\di+", r"\dx", r"\dp", r"\db+"] {
        said(psql(node, &["-c", command]));
    }
    for command in [r"\d people", r"\d+ people"] {
        let table = said(psql(node, &["-c", command]));
        for part in
            ["Table \"public.people\"", "id     | integer", "not null", "born   | date", "\"people_pkey\" PRIMARY KEY"]
        {
            assert!(table.contains(part), "{command} shows {part}:\n{table}");
        }
    }
    foreign_keys(node);
    let index = said(psql(node, &["-c", r"\d people_pkey"]));
    assert!(index.contains("primary key, btree, for table \"public.people\""), "{index}");
}

fn foreign_keys(node: &Node) {
    let script = "CREATE TABLE pets (id int PRIMARY KEY, owner int REFERENCES people ON DELETE CASCADE,
        vet int CONSTRAINT vet REFERENCES people DEFERRABLE INITIALLY DEFERRED)";
    said(psql(node, &["-c", script]));
    let (child, parent) = (said(psql(node, &["-c", r"\d pets"])), said(psql(node, &["-c", r"\d people"])));
    for part in [
        "Foreign-key constraints:",
        "\"pets_owner_fkey\" FOREIGN KEY (owner) REFERENCES people(id) ON DELETE CASCADE",
        "\"vet\" FOREIGN KEY (vet) REFERENCES people(id) DEFERRABLE INITIALLY DEFERRED",
    ] {
        assert!(child.contains(part), "{part}:\n{child}");
    }
    for part in ["Referenced by:", "TABLE \"pets\" CONSTRAINT \"vet\" FOREIGN KEY (vet) REFERENCES people(id)"] {
        assert!(parent.contains(part), "{part}:\n{parent}");
    }
    said(psql(node, &["-c", "DROP TABLE pets"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn psycopg_3() {
    let cluster = Cluster::start_ready(3).await;
    let script = tests::source::root().join("tests/tests/it/drivers/psycopg_3.py");
    // Debian's psycopg belongs to Debian's python, not to the first one in PATH.
    let output = Command::new("/usr/bin/python3")
        .arg(script)
        .arg(cluster.nodes()[1].sql_port().to_string())
        .output()
        .expect("python3 is installed (apt-get install python3-psycopg)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
