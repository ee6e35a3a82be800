//! FOR UPDATE, FOR NO KEY UPDATE, FOR SHARE, FOR KEY SHARE behind a query. PURE.
//!
//! sqlparser knows two of the four, one table behind OF, and no LIMIT behind them. So the clauses are taken out of a statement's
//! tokens before it is parsed. Those of its own query are put into the parsed one in a form of ours ([`encoded`]); those of a
//! query in parentheses come back at its end, in the same form spelled so that sqlparser reads it:
//!
//! ```text
//!   (SELECT id FROM q FOR NO KEY UPDATE OF q SKIP LOCKED LIMIT 1)
//!   (SELECT id FROM q LIMIT 1 FOR UPDATE OF "ROW_LOCK_MODE_NO_KEY_UPDATE".q SKIP LOCKED)
//! ```

use datafusion::sql::sqlparser::{
    ast::{Ident, LockClause, LockType, NonBlock, ObjectName, Query, Statement},
    tokenizer::{Token, TokenWithSpan, Whitespace, Word},
};
use kv::{OnLocked, RowLockMode};

use crate::error::{SqlError, SqlResult};

/// One clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowLockClause {
    /// How strong.
    pub mode: RowLockMode,
    /// Of these tables, by name or alias; of all when empty.
    pub of: Vec<Ident>,
    /// NOWAIT, SKIP LOCKED.
    pub on_locked: OnLocked,
}

/// Whether `sql` may hold a clause: cheap.
pub fn may_lock(sql: &str) -> bool {
    sql.as_bytes().windows(4).any(|word| word[..3].eq_ignore_ascii_case(b"for") && word[3].is_ascii_whitespace())
}

/// Takes the clauses outside of all parentheses out of a statement's tokens, and moves those inside to the end of their query.
pub fn take(tokens: Vec<TokenWithSpan>) -> SqlResult<(Vec<TokenWithSpan>, Vec<RowLockClause>)> {
    let (mut rest, mut clauses) = (Vec::with_capacity(tokens.len()), Vec::new());
    // Of the parentheses around the one at hand.
    let mut around: Vec<Vec<RowLockClause>> = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match &token.token {
            Token::LParen => around.push(std::mem::take(&mut clauses)),
            Token::RParen => {
                let inside = std::mem::replace(&mut clauses, around.pop().unwrap_or_default());
                let spelled = inside.into_iter().flat_map(spelled);
                rest.extend(spelled.map(|word| TokenWithSpan::new(word, token.span)));
            }
            _ => {
                let mut words = Words { tokens: &tokens, at };
                if words.word("FOR")
                    && let Some(mode) = words.mode()
                {
                    clauses.push(words.clause(mode)?);
                    at = words.at;
                    continue;
                }
            }
        }
        rest.push(token.clone());
        at += 1;
    }
    Ok((rest, clauses))
}

/// The tokens of a clause's encoded form.
fn spelled(clause: RowLockClause) -> Vec<Token> {
    let word = |word: &str| [Token::Whitespace(Whitespace::Space), Token::make_keyword(word)];
    let mut tokens: Vec<Token> = ["FOR", "UPDATE", "OF"].into_iter().flat_map(word).collect();
    tokens.extend(word("")[..1].iter().cloned());
    tokens.push(Token::make_word(clause.mode.as_str_name(), Some('"')));
    for table in clause.of {
        tokens.extend([Token::Period, Token::make_word(&table.value, table.quote_style)]);
    }
    let behind: &[&str] = match clause.on_locked {
        OnLocked::Refuse => &["NOWAIT"],
        OnLocked::Skip => &["SKIP", "LOCKED"],
        OnLocked::Wait | OnLocked::WaitFor(_) => &[],
    };
    tokens.extend(behind.iter().flat_map(|behind| word(behind)));
    tokens
}

/// Reads words, skipping blanks.
struct Words<'a> {
    tokens: &'a [TokenWithSpan],
    at: usize,
}

impl Words<'_> {
    fn peek(&self) -> Option<(usize, &Token)> {
        let blank = |token: &Token| matches!(token, Token::Whitespace(_));
        let rest = self.tokens.iter().enumerate().skip(self.at);
        rest.map(|(at, token)| (at, &token.token)).find(|(_, token)| !blank(token))
    }

    fn word(&mut self, wanted: &str) -> bool {
        match self.peek() {
            Some((at, Token::Word(Word { value, quote_style: None, .. }))) if value.eq_ignore_ascii_case(wanted) => {
                self.at = at + 1;
                true
            }
            _ => false,
        }
    }

    fn words(&mut self, wanted: &[&str]) -> bool {
        let before = self.at;
        let all = wanted.iter().all(|word| self.word(word));
        if !all {
            self.at = before;
        }
        all
    }

    fn mode(&mut self) -> Option<RowLockMode> {
        let modes: [(&[&str], RowLockMode); 4] = [
            (&["UPDATE"], RowLockMode::Update),
            (&["NO", "KEY", "UPDATE"], RowLockMode::NoKeyUpdate),
            (&["SHARE"], RowLockMode::Share),
            (&["KEY", "SHARE"], RowLockMode::KeyShare),
        ];
        modes.into_iter().find(|(words, _)| self.words(words)).map(|(_, mode)| mode)
    }

    fn clause(&mut self, mode: RowLockMode) -> SqlResult<RowLockClause> {
        let mut of = Vec::new();
        if self.word("OF") {
            loop {
                let Some((at, Token::Word(word))) = self.peek() else {
                    return Err(SqlError::syntax("syntax error: FOR … OF needs the name of a table"));
                };
                of.push(word.clone().into_ident(self.tokens[at].span));
                self.at = at + 1;
                match self.peek() {
                    Some((at, Token::Comma)) => self.at = at + 1,
                    _ => break,
                }
            }
        }
        let on_locked = if self.word("NOWAIT") {
            OnLocked::Refuse
        } else if self.words(&["SKIP", "LOCKED"]) {
            OnLocked::Skip
        } else {
            OnLocked::Wait
        };
        Ok(RowLockClause { mode, of, on_locked })
    }
}

/// The query that a statement's clauses belong to.
pub fn query_of(statement: &mut Statement) -> Option<&mut Query> {
    match statement {
        Statement::Query(query) => Some(query),
        Statement::Insert(insert) => insert.source.as_deref_mut(),
        Statement::Explain { statement, .. } | Statement::Prepare { statement, .. } => query_of(statement),
        Statement::Declare { stmts } => stmts.first_mut()?.for_query.as_deref_mut(),
        _ => None,
    }
}

/// The clause as a parsed query carries it: the mode's name before the tables.
pub fn encoded(clause: RowLockClause) -> LockClause {
    let mut parts = vec![Ident::with_quote('"', clause.mode.as_str_name())];
    parts.extend(clause.of);
    LockClause {
        lock_type: if clause.mode >= RowLockMode::NoKeyUpdate { LockType::Update } else { LockType::Share },
        of: Some(ObjectName::from(parts)),
        nonblock: match clause.on_locked {
            OnLocked::Refuse => Some(NonBlock::Nowait),
            OnLocked::Skip => Some(NonBlock::SkipLocked),
            OnLocked::Wait | OnLocked::WaitFor(_) => None,
        },
    }
}

/// The reverse of [`encoded`]; `None` for a clause that sqlparser made.
pub fn decoded(clause: &LockClause) -> Option<RowLockClause> {
    let mut parts = clause.of.as_ref()?.0.iter().map(|part| part.as_ident().cloned());
    let mode = RowLockMode::from_str_name(&parts.next()??.value)?;
    Some(RowLockClause {
        mode,
        of: parts.collect::<Option<_>>()?,
        on_locked: match clause.nonblock {
            Some(NonBlock::Nowait) => OnLocked::Refuse,
            Some(NonBlock::SkipLocked) => OnLocked::Skip,
            None => OnLocked::Wait,
        },
    })
}

#[cfg(test)]
mod tests {
    use crate::statement::{Command, parse_one};

    use super::*;

    fn clauses(sql: &str) -> Vec<RowLockClause> {
        let Ok(Command::Sql(statement)) = parse_one(sql) else { panic!("{sql} does not parse") };
        let mut statement = (*statement).clone();
        query_of(&mut statement).unwrap().locks.iter().map(|clause| decoded(clause).unwrap()).collect()
    }

    #[test]
    fn all_forms_are_understood() {
        let clause = |mode, of: &[&str], on_locked| {
            let of = of.iter().map(|name| Ident::new(*name)).collect();
            RowLockClause { mode, of, on_locked }
        };
        let found = clauses("SELECT * FROM t WHERE a = 'for update' FOR NO KEY UPDATE OF t, u NOWAIT LIMIT 3");
        assert_eq!(found, [clause(RowLockMode::NoKeyUpdate, &["t", "u"], OnLocked::Refuse)]);
        let found = clauses("select substring(a for 3) from t limit 1 for key share skip locked for update of u");
        let wanted =
            [clause(RowLockMode::KeyShare, &[], OnLocked::Skip), clause(RowLockMode::Update, &["u"], OnLocked::Wait)];
        assert_eq!(found, wanted);
        assert_eq!(clauses("DECLARE c CURSOR FOR SELECT 1 FROM t FOR SHARE").len(), 1);
        assert_eq!(clauses("INSERT INTO u SELECT * FROM t FOR UPDATE").len(), 1);
        assert!(parse_one("SELECT 1 FROM t FOR UPDATE OF").is_err());
        assert!(parse_one("UPDATE t SET a = 1 FOR UPDATE").is_err());
    }

    #[test]
    fn those_in_parentheses_stand_at_the_end_of_their_query() {
        let sql = "DELETE FROM q WHERE id = (SELECT id FROM q a FOR NO KEY UPDATE OF a, \"B\" SKIP LOCKED LIMIT 1)";
        let Ok(Command::Sql(statement)) = parse_one(sql) else { panic!("it does not parse") };
        let shown = statement.to_string();
        assert!(
            shown.ends_with("LIMIT 1 FOR UPDATE OF \"ROW_LOCK_MODE_NO_KEY_UPDATE\".a.\"B\" SKIP LOCKED)"),
            "{shown}"
        );
    }
}
