//! What names mean while a statement is bound: tables of a catalog snapshot, functions, types.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion::{
    common::{DataFusionError, Result, TableReference},
    config::ConfigOptions,
    datasource::provider_as_source,
    logical_expr::{
        AggregateUDF, Expr, HigherOrderUDF, ScalarUDF, TableSource, WindowUDF,
        planner::{ContextProvider, ExprPlanner, TypePlanner},
    },
};

use super::{operators::PgOperators, row_locks::locked_at, type_names::PgTypes};
use crate::{
    catalog::CatalogSnapshot,
    error::SqlError,
    query::{
        catalog::{self, functions as catalog_functions},
        engine,
        failure::undefined_table,
        functions::{registry, sequences, session},
        locked::LockedRows,
        scan::RegionTable,
    },
};

/// The snapshot's tables and our functions, as DataFusion's planner asks for them.
pub struct Provider {
    snapshot: Arc<CatalogSnapshot>,
    /// The tables whose hidden columns the statement may name: the target of an UPDATE or DELETE, and those whose rows are locked.
    targets: Vec<u32>,
    /// The rows of locking queries inside the statement.
    inner: Vec<SchemaRef>,
    options: ConfigOptions,
    planners: Vec<Arc<dyn ExprPlanner>>,
}

impl Provider {
    /// For one statement.
    pub fn new(snapshot: Arc<CatalogSnapshot>, targets: Vec<u32>, inner: Vec<SchemaRef>) -> Self {
        let mut planners: Vec<Arc<dyn ExprPlanner>> = vec![Arc::new(PgOperators)];
        planners.extend(engine::default_expr_planners());
        Provider { snapshot, targets, inner, options: engine::options(), planners }
    }
}

impl ContextProvider for Provider {
    fn get_table_source(&self, name: TableReference) -> Result<Arc<dyn TableSource>> {
        if let Some(at) = locked_at(name.table())
            && let Some(schema) = self.inner.get(at)
        {
            return Ok(provider_as_source(Arc::new(LockedRows::new(at, Arc::clone(schema)))));
        }
        if let Some(table) = catalog::virtual_table(&self.snapshot, name.schema(), name.table()) {
            return Ok(provider_as_source(table));
        }
        let schema = name.schema().unwrap_or(crate::catalog::descriptor::PUBLIC_SCHEMA);
        match self.snapshot.table(schema, name.table()) {
            Some(table) => {
                let hidden = self.targets.contains(&table.id);
                Ok(provider_as_source(Arc::new(RegionTable::new(Arc::clone(table), hidden))))
            }
            None if self.snapshot.resolve_sequence(Some(schema), name.table()).is_ok() => {
                Err(crate::query::failure::external(
                    SqlError::unsupported("a sequence in FROM")
                        .with_hint("pg_sequences shows sequences, currval() and lastval() a session's values."),
                ))
            }
            None => Err(crate::query::failure::external(undefined_table(&name))),
        }
    }

    fn get_table_function_source(&self, name: &str, arguments: Vec<Expr>) -> Result<Arc<dyn TableSource>> {
        let made = engine::table_function(registry::unqualified(name), &arguments);
        let provider = made.ok_or_else(|| DataFusionError::Plan(format!("Invalid function '{name}'")))?;
        Ok(provider_as_source(provider?))
    }

    fn create_cte_work_table(&self, name: &str, schema: arrow::datatypes::SchemaRef) -> Result<Arc<dyn TableSource>> {
        let table = datafusion::datasource::cte_worktable::CteWorkTable::new(name, schema);
        Ok(provider_as_source(Arc::new(table)))
    }

    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }

    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        Some(Arc::new(PgTypes))
    }

    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        let name = registry::unqualified(name);
        session::function(name)
            .or_else(|| catalog_functions::function(name, &self.snapshot))
            .or_else(|| sequences::function(name, &self.snapshot))
            .or_else(|| registry::functions().scalar(name))
    }

    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }

    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        registry::functions().aggregate(name)
    }

    fn get_window_meta(&self, name: &str) -> Option<Arc<WindowUDF>> {
        registry::functions().window(name)
    }

    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }

    fn options(&self) -> &ConfigOptions {
        &self.options
    }

    fn udf_names(&self) -> Vec<String> {
        registry::functions().scalar_names()
    }

    fn higher_order_function_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn udaf_names(&self) -> Vec<String> {
        registry::functions().aggregate_names()
    }

    fn udwf_names(&self) -> Vec<String> {
        registry::functions().window_names()
    }
}
