//! Golden scripts: `history/testscripts/*`. `UPDATE_GOLDENFILES=1 cargo test -p history` rewrites them.
//!
//! ```text
//! ok|fail|unknown SESSION FROM-TO OPERATION…    adds a transaction
//!     aK.V append   lK.V.V… list   wK.V write   rK.V read   rK read nothing   tID.FROM.TO.AMOUNT transfer
//!     bal.V.V… balances   led.ID… ledger (of known transfers, or ID.FROM.TO.AMOUNT/…)   pK.1.0 pair   cK.WHO.0 on call
//!     iV insert   rows.V.V…   dV drawn
//! check WORKLOAD LEVEL [realtime=yes] [accounts=COUNT.INITIAL]    prints the verdict and forgets the history
//! ```

use std::{error::Error, path::Path};

use goldenscript::{Command, Context, Runner};
use test_each_file::test_each_path;

use crate::{
    Accounts, FORMAT, Header, History, Level, Operation, Outcome, Promise, Transaction, Transfer, Workload, check,
};

test_each_path! { in "history/testscripts" as scripts => |path: &Path| {
    goldenscript::run(&mut Script::default(), path).expect("the script runs");
} }

#[derive(Default)]
struct Script(Vec<Transaction>);

type Output = Result<String, Box<dyn Error>>;

fn numbers(text: &str) -> Result<Vec<u64>, Box<dyn Error>> {
    let some = text.split('.').filter(|part| !part.is_empty());
    Ok(some.map(str::parse).collect::<Result<_, _>>().map_err(|e| format!("{text}: {e}"))?)
}

fn transfer(text: &str) -> Result<Transfer, Box<dyn Error>> {
    let [id, from, to, amount] = numbers(text)?[..] else { return Err(format!("no transfer: {text}").into()) };
    Ok(Transfer { id, from, to, amount: amount as i64 })
}

fn operation(text: &str) -> Result<Operation, Box<dyn Error>> {
    if let Some(rest) = text.strip_prefix("bal.") {
        return Ok(Operation::Balances(rest.split('.').map(str::parse).collect::<Result<_, _>>()?));
    }
    if let Some(rest) = text.strip_prefix("led.") {
        return Ok(Operation::Ledger(rest.split('/').map(transfer).collect::<Result<_, _>>()?));
    }
    if let Some(rest) = text.strip_prefix("rows") {
        return Ok(Operation::Rows(numbers(rest)?));
    }
    let (letter, rest) = text.split_at(1);
    Ok(match (letter, &numbers(rest)?[..]) {
        ("a", [key, value]) => Operation::Append(*key, *value),
        ("l", [key, values @ ..]) => Operation::List(*key, values.to_vec()),
        ("w", [key, value]) => Operation::Write(*key, *value),
        ("r", [key, value]) => Operation::Read(*key, Some(*value)),
        ("r", [key]) => Operation::Read(*key, None),
        ("t", _) => Operation::Transfer(transfer(rest)?),
        ("p", [pair, a, b]) => Operation::Pair(*pair, [*a == 1, *b == 1]),
        ("c", [pair, who, on]) => Operation::OnCall(*pair, *who as u8, *on == 1),
        ("i", [value]) => Operation::Insert(*value),
        ("d", [value]) => Operation::Drawn(*value as i64),
        _ => return Err(format!("no operation: {text}").into()),
    })
}

fn workload(name: &str) -> Result<Workload, Box<dyn Error>> {
    Ok(serde_json::from_value(name.into())?)
}

impl Runner for Script {
    type Command = Command;
    fn run(&mut self, command: &Command, _: &Context) -> Output {
        let mut args = command.consume_args();
        let outcome = match command.name.as_str() {
            "ok" => Outcome::Ok,
            "fail" => Outcome::Fail,
            "unknown" => Outcome::Unknown,
            "check" => {
                let workload = workload(args.next_pos().ok_or("a workload")?)?;
                let level: Level = args.next_pos().ok_or("a level")?.parse()?;
                let realtime = args.take_key("realtime").is_some();
                let accounts = args.take_key("accounts").map(numbers).transpose()?;
                let accounts = accounts.map(|a| Accounts { count: a[0], initial: a[1].cast_signed() });
                let promise = if realtime { Promise::in_real_time(level) } else { Promise::plain(level) };
                let header = Header { format: FORMAT, workload, level, accounts };
                let history = History { header, transactions: std::mem::take(&mut self.0) };
                return Ok(check(&history, promise).map_or_else(|e| format!("malformed: {e}"), |v| v.to_string()));
            }
            other => return Err(format!("unknown command {other}").into()),
        };
        let session = args.next_pos().ok_or("a session")?.parse()?;
        let (from, to) = args.next_pos().ok_or("an interval")?.split_once('-').ok_or("FROM-TO")?;
        let (invoked_ns, returned_ns) = (from.parse()?, to.parse()?);
        let words: Vec<&str> = std::iter::from_fn(|| args.next_pos()).collect();
        let operations = words.into_iter().map(operation).collect::<Result<_, _>>()?;
        self.0.push(Transaction { session, invoked_ns, returned_ns, outcome, operations });
        Ok(String::new())
    }
}
