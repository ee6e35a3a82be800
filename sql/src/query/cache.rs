//! The cache of planned statements, and the way every statement takes through it.
//!
//! ```text
//!   text ─ shape ─► (shape, catalog version, parameter types) ─► variants: slots ─► QueryPlan
//!                                                                 LIMIT fixed to 1, LIMIT fixed to 10, …
//! ```
//!
//! A hit costs one pass over the statement's bytes: neither parser nor planner run. A transaction that has changed the
//! catalog itself plans without the cache.

use std::{num::NonZeroUsize, sync::Arc};

use datafusion::sql::sqlparser::ast::Statement;
use lru::LruCache;
use parking_lot::Mutex;

use super::{
    bind::{self, Unbound},
    normalise::{self, Shape, Slot},
    plan::QueryPlan,
};
use crate::{
    catalog::CatalogSnapshot,
    error::SqlResult,
    types::{ColumnType, Datum},
};

/// Shapes a gateway keeps plans for: more than the statements of a big application.
const MAX_SHAPES: NonZeroUsize = NonZeroUsize::new(2048).expect("not zero");
/// Plans of one shape that differ in fixed literals.
const MAX_VARIANTS: usize = 16;

/// A plan, and the values of the literals of this very statement.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The plan.
    pub plan: Arc<QueryPlan>,
    /// For [`super::plan::RunValues::lifted`].
    pub lifted: Vec<Datum>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    shape: String,
    catalog_version: u64,
    parameter_types: Vec<Option<ColumnType>>,
}

struct Variant {
    slots: Vec<Slot>,
    plan: Arc<QueryPlan>,
}

impl Variant {
    fn serves(&self, sql: &str, shape: &Shape) -> bool {
        self.slots.iter().zip(&shape.literals).all(|(slot, literal)| match slot {
            Slot::Fixed(text) => sql.get(literal.start..literal.end) == Some(text),
            any => *any == Slot::any(literal, sql),
        })
    }
}

/// Plans of one gateway.
pub struct PlanCache {
    plans: Mutex<LruCache<Key, Vec<Variant>>>,
}

impl Default for PlanCache {
    fn default() -> Self {
        PlanCache { plans: Mutex::new(LruCache::new(MAX_SHAPES)) }
    }
}

impl PlanCache {
    /// The plan of a statement that was planned before, without parsing it.
    pub fn find(
        &self,
        sql: &str,
        snapshot: &CatalogSnapshot,
        parameter_types: &[Option<ColumnType>],
    ) -> SqlResult<Option<Planned>> {
        if snapshot.private {
            return Ok(None);
        }
        let Some(shape) = normalise::shape(sql) else { return Ok(None) };
        let key = key(&shape, snapshot, parameter_types);
        let plan = {
            let mut plans = self.plans.lock();
            let Some(variants) = plans.get(&key) else { return Ok(None) };
            let Some(variant) = variants.iter().find(|variant| variant.serves(sql, &shape)) else { return Ok(None) };
            Arc::clone(&variant.plan)
        };
        planned(plan, sql, Some(&shape)).map(Some)
    }

    /// Plans a parsed statement, which must be `sql`'s only one, and keeps the plan.
    pub fn plan(
        &self,
        sql: &str,
        statement: Statement,
        snapshot: &Arc<CatalogSnapshot>,
        parameter_types: &[Option<ColumnType>],
    ) -> SqlResult<Planned> {
        let shape = normalise::shape(sql).filter(|_| !snapshot.private);
        let source = shape.as_ref().map(|shape| (sql, shape));
        let bound = bind::bind(Unbound { statement, source, parameter_types, snapshot })?;
        let slots = shape.as_ref().map(|shape| bound.literals.slots(sql, shape));
        let plan = Arc::new(QueryPlan::new(bound)?);
        if let (Some(shape), Some(slots)) = (&shape, slots) {
            self.keep(key(shape, snapshot, parameter_types), Variant { slots, plan: Arc::clone(&plan) });
        }
        planned(plan, sql, shape.as_ref())
    }

    fn keep(&self, key: Key, variant: Variant) {
        let mut plans = self.plans.lock();
        let variants = plans.get_or_insert_mut(key, Vec::new);
        variants.retain(|known| known.slots != variant.slots);
        if variants.len() == MAX_VARIANTS {
            variants.remove(0);
        }
        variants.push(variant);
    }
}

fn key(shape: &Shape, snapshot: &CatalogSnapshot, parameter_types: &[Option<ColumnType>]) -> Key {
    Key { shape: shape.text.clone(), catalog_version: snapshot.version, parameter_types: parameter_types.to_vec() }
}

fn planned(plan: Arc<QueryPlan>, sql: &str, shape: Option<&Shape>) -> SqlResult<Planned> {
    let text_of = |at: usize| shape.map_or_else(String::new, |shape| shape.literals[at].value(sql).into_owned());
    let lifted = plan.lifted_values(text_of)?;
    Ok(Planned { plan, lifted })
}
