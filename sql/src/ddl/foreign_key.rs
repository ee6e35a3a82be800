//! FOREIGN KEY in CREATE and ALTER TABLE.
//!
//! A constraint comes between two tables while both are locked against writers: whoever wrote by the older schema has
//! committed or failed, whoever writes by the new one keeps the constraint.

use std::{collections::BTreeSet, sync::Arc};

use datafusion::sql::sqlparser::ast::{
    ConstraintCharacteristics, ConstraintReferenceMatchKind, DeferrableInitial, ForeignKeyConstraint, Ident,
    ReferentialAction,
};

use super::{Pending, constraint::Alone, index::joined};
use crate::{
    catalog::{
        CatalogSnapshot, ForeignKeyDescriptor, Table, TableDescriptor,
        descriptor::{MAX_KEY_COLUMNS, PRIMARY_INDEX},
        foreign_key::{Action, Deferral},
        store,
    },
    error::{SqlError, SqlResult, SqlState},
    gateway::Gateway,
    name::{RelationName, folded},
    types::PgType,
};

/// A FOREIGN KEY as it was said.
#[derive(Clone, Debug)]
pub struct Said {
    name: Option<String>,
    columns: Vec<String>,
    parent: RelationName,
    referenced: Vec<String>,
    match_full: bool,
    on_update: Action,
    on_delete: Action,
    deferral: Deferral,
}

/// Reads one; `column` and `name` are of the column whose definition it stands in.
pub fn read(key: &ForeignKeyConstraint, column: Option<&str>, name: Option<String>) -> SqlResult<Said> {
    if key.index_name.is_some() {
        return Err(SqlError::syntax("syntax error in FOREIGN KEY"));
    }
    let match_full = match key.match_kind {
        Some(ConstraintReferenceMatchKind::Full) => true,
        Some(ConstraintReferenceMatchKind::Partial) => {
            return Err(SqlError::new(SqlState::FEATURE_NOT_SUPPORTED, "MATCH PARTIAL not yet implemented"));
        }
        Some(ConstraintReferenceMatchKind::Simple) | None => false,
    };
    let names = |idents: &[Ident]| idents.iter().map(folded).collect::<Vec<_>>();
    Ok(Said {
        name: name.or_else(|| key.name.as_ref().map(folded)),
        columns: column.map_or_else(|| names(&key.columns), |column| vec![column.to_owned()]),
        parent: RelationName::new(&key.foreign_table)?,
        referenced: names(&key.referred_columns),
        match_full,
        on_update: action(key.on_update),
        on_delete: action(key.on_delete),
        deferral: deferral(key.characteristics.as_ref())?,
    })
}

fn action(said: Option<ReferentialAction>) -> Action {
    match said {
        None | Some(ReferentialAction::NoAction) => Action::NoAction,
        Some(ReferentialAction::Restrict) => Action::Restrict,
        Some(ReferentialAction::Cascade) => Action::Cascade,
        Some(ReferentialAction::SetNull) => Action::SetNull,
        Some(ReferentialAction::SetDefault) => Action::SetDefault,
    }
}

/// 42601 for one that is deferred and not deferrable.
pub fn deferral(said: Option<&ConstraintCharacteristics>) -> SqlResult<Deferral> {
    let Some(said) = said else { return Ok(Deferral::Never) };
    if said.enforced.is_some() {
        return Err(SqlError::unsupported("ENFORCED"));
    }
    match (said.deferrable, said.initially) {
        (Some(false), Some(DeferrableInitial::Deferred)) => {
            Err(SqlError::syntax("constraint declared INITIALLY DEFERRED must be DEFERRABLE"))
        }
        (Some(true) | None, Some(DeferrableInitial::Deferred)) => Ok(Deferral::Deferred),
        (Some(true), _) => Ok(Deferral::Immediate),
        (Some(false) | None, _) => Ok(Deferral::Never),
    }
}

/// The table a constraint of `child` references: itself, or one of the catalog. 42P01 when there is none.
fn parent_of<'a>(
    catalog: &'a CatalogSnapshot,
    child: &'a TableDescriptor,
    said: &Said,
) -> SqlResult<&'a TableDescriptor> {
    let schema = said.parent.schema.as_deref();
    if said.parent.name == child.name && schema.is_none_or(|schema| schema == child.schema) {
        return Ok(child);
    }
    catalog.resolve(schema, &said.parent.name).map(|table| &**table)
}

/// The constraint of `child`; `taken` are names of others that are about to come.
pub fn described(
    catalog: &CatalogSnapshot,
    child: &TableDescriptor,
    said: &Said,
    id: u32,
    taken: &[String],
) -> SqlResult<ForeignKeyDescriptor> {
    let parent = parent_of(catalog, child, said)?;
    let columns = positions(child, &said.columns)?;
    let (referenced, index) = match said.referenced.is_empty() {
        true if parent.primary_key.is_some() => (parent.key.clone(), PRIMARY_INDEX),
        true if parent.has_primary_key() => return Err(never_sure(parent, "primary key")),
        true => {
            let message = format!("there is no primary key for referenced table \"{}\"", parent.name);
            return Err(SqlError::new(SqlState::UNDEFINED_OBJECT, message));
        }
        false => {
            let referenced = positions(parent, &said.referenced)?;
            if (1..referenced.len()).any(|at| referenced[..at].contains(&referenced[at])) {
                let message = "foreign key referenced-columns list must not contain duplicates";
                return Err(SqlError::new(SqlState::INVALID_FOREIGN_KEY, message));
            }
            let index = unique_index(parent, &referenced);
            (referenced, index?)
        }
    };
    if columns.len() != referenced.len() {
        let message = "number of referencing and referenced columns for foreign key disagree";
        return Err(SqlError::new(SqlState::INVALID_FOREIGN_KEY, message));
    }
    let name = named(catalog, child, said, &columns, taken)?;
    for (own, other) in columns.iter().zip(&referenced) {
        check_types(&name, (child, *own), (parent, *other))?;
    }
    Ok(ForeignKeyDescriptor {
        id,
        name,
        columns,
        parent: parent.id,
        referenced,
        index,
        match_full: said.match_full,
        on_update: said.on_update,
        on_delete: said.on_delete,
        deferral: said.deferral,
        validated: true,
    })
}

fn positions(table: &TableDescriptor, names: &[String]) -> SqlResult<Vec<usize>> {
    if names.len() > MAX_KEY_COLUMNS {
        let message = format!("cannot have more than {MAX_KEY_COLUMNS} keys in a foreign key");
        return Err(SqlError::new(SqlState::TOO_MANY_COLUMNS, message));
    }
    let position = |name: &String| {
        let at = table.position(name).filter(|at| !table.columns[*at].hidden);
        at.ok_or_else(|| {
            let message = format!("column \"{name}\" referenced in foreign key constraint does not exist");
            SqlError::new(SqlState::UNDEFINED_COLUMN, message)
        })
    };
    names.iter().map(position).collect()
}

/// 55000: rows may have a key twice for a while, and which of them would be the parent?
fn never_sure(parent: &TableDescriptor, kind: &str) -> SqlError {
    let message = format!("cannot use a deferrable {kind} for referenced table \"{}\"", parent.name);
    SqlError::new(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

/// The index that makes these columns unique at any moment; 42830 when there is none, 55000 when it is deferrable.
fn unique_index(parent: &TableDescriptor, columns: &[usize]) -> SqlResult<u32> {
    let wanted: BTreeSet<usize> = columns.iter().copied().collect();
    if parent.primary_key.is_some() && parent.key.iter().copied().collect::<BTreeSet<usize>>() == wanted {
        return Ok(PRIMARY_INDEX);
    }
    let same = |index: &&crate::catalog::descriptor::IndexDescriptor| {
        index.unique && index.columns.iter().map(|column| column.at).collect::<BTreeSet<usize>>() == wanted
    };
    let found: Vec<_> = parent.public_indexes().filter(same).collect();
    if let Some(index) = found.iter().find(|index| index.is_strict()) {
        return Ok(index.id);
    }
    if !found.is_empty() {
        return Err(never_sure(parent, "unique constraint"));
    }
    let message = format!("there is no unique constraint matching given keys for referenced table \"{}\"", parent.name);
    Err(SqlError::new(SqlState::INVALID_FOREIGN_KEY, message))
}

fn named(
    catalog: &CatalogSnapshot,
    child: &TableDescriptor,
    said: &Said,
    columns: &[usize],
    taken: &[String],
) -> SqlResult<String> {
    match &said.name {
        Some(name) if child.has_constraint(name) || taken.contains(name) => {
            let message = format!("constraint \"{name}\" for relation \"{}\" already exists", child.name);
            Err(SqlError::new(SqlState::DUPLICATE_OBJECT, message))
        }
        Some(name) => Ok(name.clone()),
        None => {
            let mut taken = taken.to_vec();
            let same_schema = catalog.tables().filter(|table| table.schema == child.schema);
            taken.extend(same_schema.flat_map(|table| &table.foreign_keys).map(|key| key.name.clone()));
            taken.extend(child.checks.iter().map(|check| check.name.clone()));
            Ok(catalog.free_name(&child.schema, [&child.name, &joined(child, columns)], "fkey", &taken))
        }
    }
}

/// 42804 for columns whose values are never equal.
fn check_types(name: &str, own: (&TableDescriptor, usize), other: (&TableDescriptor, usize)) -> SqlResult<()> {
    let [own, other] = [own, other].map(|(table, at)| &table.columns[at]);
    let [a, b] = [own, other].map(|column| column.column_type.pg_type);
    let texts = |pg_type: PgType| matches!(pg_type, PgType::Text | PgType::Varchar);
    if a == b || (a.is_integer() && b.is_integer()) || (texts(a) && texts(b)) {
        return Ok(());
    }
    let message = format!("foreign key constraint \"{name}\" cannot be implemented");
    Err(SqlError::new(SqlState::DATATYPE_MISMATCH, message).with_detail(format!(
        "Key columns \"{}\" and \"{}\" are of incompatible types: {} and {}.",
        own.name,
        other.name,
        a.sql_name(),
        b.sql_name()
    )))
}

/// The parents of a table's constraints learn of it.
pub fn link(pending: &mut Pending, child: &TableDescriptor) {
    let parents: BTreeSet<u32> = child.foreign_keys.iter().map(|key| key.parent).collect();
    for parent in parents.into_iter().filter(|parent| *parent != child.id) {
        let Some(table) = pending.catalog.by_id(parent) else { continue };
        let mut new = next(table);
        if !new.referrers.contains(&child.id) {
            new.referrers.push(child.id);
        }
        pending.put(Arc::new(new));
    }
}

/// A table's next descriptor.
pub fn next(table: &TableDescriptor) -> TableDescriptor {
    TableDescriptor { version: table.version + 1, ..table.clone() }
}

/// ALTER TABLE … ADD FOREIGN KEY. 23503 for a row that is there and has no parent, unless `unchecked`.
pub async fn add(
    gateway: &Arc<Gateway>,
    pending: &mut Pending,
    child: &Table,
    said: &Said,
    (unchecked, alone): (bool, &Alone),
) -> SqlResult<()> {
    let id = store::allocate_ids(gateway.client(), 1).await?;
    let mut key = described(&pending.catalog, child, said, id, &[])?;
    if !unchecked {
        let parent = pending.catalog.by_id(key.parent).map_or_else(|| Arc::clone(child), Arc::clone);
        alone.unwritten(&[child, &parent], "a FOREIGN KEY constraint")?;
        super::validate::foreign_key(gateway, child, &parent, &key).await?;
    }
    key.validated = !unchecked;
    let mut new = next(child);
    if key.parent == child.id && !new.referrers.contains(&child.id) {
        new.referrers.push(child.id);
    }
    new.foreign_keys.push(key);
    link(pending, &new);
    pending.put(Arc::new(new));
    Ok(())
}

/// Takes constraints of a table away; parents that have no other one of it forget the table.
pub fn remove(pending: &mut Pending, child: u32, gone: &[u32]) {
    let Some(table) = pending.catalog.by_id(child) else { return };
    let mut new = TableDescriptor { version: table.version + 1, ..(**table).clone() };
    let (removed, kept) = new.foreign_keys.into_iter().partition(|key| gone.contains(&key.id));
    new.foreign_keys = kept;
    let removed: Vec<ForeignKeyDescriptor> = removed;
    let parents: BTreeSet<u32> = removed.iter().map(|key| key.parent).collect();
    let lost = |parent: &u32| !new.foreign_keys.iter().any(|key| key.parent == *parent);
    let lost: Vec<u32> = parents.into_iter().filter(lost).collect();
    if lost.contains(&child) {
        new.referrers.retain(|known| *known != child);
    }
    pending.put(Arc::new(new));
    for parent in lost.into_iter().filter(|parent| *parent != child) {
        let Some(table) = pending.catalog.by_id(parent) else { continue };
        let mut new = TableDescriptor { version: table.version + 1, ..(**table).clone() };
        new.referrers.retain(|known| *known != child);
        pending.put(Arc::new(new));
    }
}

/// Constraints of other tables on one, with their tables; those that lean on `index` if one is said.
pub fn on_table(catalog: &CatalogSnapshot, parent: &TableDescriptor, index: Option<u32>) -> Vec<(Table, u32, String)> {
    let children = parent.referrers.iter().filter_map(|id| catalog.by_id(*id));
    children
        .flat_map(|child| {
            let leans =
                |key: &&ForeignKeyDescriptor| key.parent == parent.id && index.is_none_or(|index| key.index == index);
            child.foreign_keys.iter().filter(leans).map(|key| (Arc::clone(child), key.id, key.name.clone()))
        })
        .collect()
}
