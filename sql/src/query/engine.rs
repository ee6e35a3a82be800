//! DataFusion as we run it: one state for the process, its rules, its bounds.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use datafusion::{
    catalog::{TableFunction, TableFunctionArgs, TableProvider},
    common::{DFSchema, Result},
    config::{ConfigNonZeroUsize, ConfigOptions},
    execution::{
        SessionState, SessionStateBuilder, SessionStateDefaults, TaskContext,
        disk_manager::{DiskManagerBuilder, DiskManagerMode},
        memory_pool::GreedyMemoryPool,
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    logical_expr::{Expr, LogicalPlan, planner::ExprPlanner},
    physical_expr::PhysicalExpr,
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner},
    prelude::SessionConfig,
};

use super::{lookup::LookupPlanner, run::Slot, values::ValuesPlanner};

/// Partitions of a scan over several regions. More than the cores of a small node, since a partition mostly waits for stores.
pub const TARGET_PARTITIONS: usize = 4;
/// Memory that sorts, joins and aggregates of all queries of a gateway may hold together; beyond it a query fails with 53200.
/// Spilling to disk comes with resource groups.
pub const QUERY_MEMORY_BYTES: usize = 512 << 20;
/// Rows of a batch between operators.
const BATCH_ROWS: usize = 4096;

/// Everything that depends on no statement.
struct Engine {
    state: SessionState,
    runtime: Arc<RuntimeEnv>,
    table_functions: HashMap<String, Arc<TableFunction>>,
    task: Arc<TaskContext>,
}

static ENGINE: LazyLock<Engine> = LazyLock::new(Engine::new);
/// How often a logical plan was made; see [`planner_runs`].
static PLANNER_RUNS: AtomicU64 = AtomicU64::new(0);
static PHYSICAL_RUNS: AtomicU64 = AtomicU64::new(0);

impl Engine {
    fn new() -> Self {
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(QUERY_MEMORY_BYTES)))
            .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled))
            .build_arc()
            .expect("a runtime without files can't fail to build");
        let config = SessionConfig::from(options());
        let state = SessionStateBuilder::new()
            .with_config(config.clone())
            .with_runtime_env(Arc::clone(&runtime))
            .with_default_features()
            .build();
        let table_functions = SessionStateDefaults::default_table_functions()
            .into_iter()
            .map(|function| (function.name().to_owned(), function))
            .collect();
        let task = Arc::new(task(config, &runtime));
        Engine { state, runtime, table_functions, task }
    }
}

/// Physical plans hold their functions themselves: a run needs no registry.
fn task(config: SessionConfig, runtime: &Arc<RuntimeEnv>) -> TaskContext {
    let runtime = Arc::clone(runtime);
    let (scalar, higher, aggregate, window) = (HashMap::new(), HashMap::new(), HashMap::new(), HashMap::new());
    TaskContext::new(None, "flaredb".to_owned(), config, scalar, higher, aggregate, window, runtime)
}

/// DataFusion's settings for PostgreSQL's behaviour.
pub fn options() -> ConfigOptions {
    let mut options = ConfigOptions::new();
    options.execution.target_partitions = TARGET_PARTITIONS;
    options.execution.batch_size = ConfigNonZeroUsize::try_new(BATCH_ROWS).expect("not zero");
    options.execution.time_zone = Some("+00:00".into());
    options.sql_parser.parse_float_as_decimal = true;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.default_null_ordering = "nulls_max".into();
    // Filters that change while a plan runs would stay in a plan that is cached and runs again.
    options.optimizer.enable_dynamic_filter_pushdown = false;
    // Scans are cut into partitions by regions already; dealing out the rows of a point look-up costs more than it brings.
    options.optimizer.enable_round_robin_repartition = false;
    // PostgreSQL types travel in the fields' metadata, which the two plans may keep differently.
    options.execution.skip_physical_aggregate_schema_check = true;
    options
}

/// Planners of array literals, extract, substring and the like.
pub fn default_expr_planners() -> Vec<Arc<dyn ExprPlanner>> {
    SessionStateDefaults::default_expr_planners()
}

/// A call of a function that stands in FROM; `None` when there is none of that name.
pub fn table_function(name: &str, arguments: &[Expr]) -> Option<Result<Arc<dyn TableProvider>>> {
    let function = ENGINE.table_functions.get(name)?;
    Some(function.create_table_provider_with_args(TableFunctionArgs::new(arguments, &ENGINE.state)))
}

/// Coerces types and optimises. Counted: this is the expensive half of planning.
pub fn optimise(plan: &LogicalPlan) -> Result<LogicalPlan> {
    PLANNER_RUNS.fetch_add(1, Ordering::Relaxed);
    let mut state = ENGINE.state.clone();
    state.mark_start_execution();
    state.optimize(plan)
}

/// How often a statement was planned since the process started: flat while cached plans are used.
pub fn planner_runs() -> u64 {
    PLANNER_RUNS.load(Ordering::Relaxed)
}

/// How often a physical plan was made: once for each statement and each concurrent use of it.
pub fn physical_plans() -> u64 {
    PHYSICAL_RUNS.load(Ordering::Relaxed)
}

/// The physical plan of an optimised logical one, whose holes read from `slot`.
pub async fn physical(plan: &LogicalPlan, slot: &Slot) -> Result<Arc<dyn ExecutionPlan>> {
    PHYSICAL_RUNS.fetch_add(1, Ordering::Relaxed);
    let state = state_with(slot);
    let planner =
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(ValuesPlanner), Arc::new(LookupPlanner)]);
    planner.create_physical_plan(plan, &state).await
}

/// Compiles one expression over rows of `schema`; its holes read from `slot`.
pub fn physical_expr(expr: Expr, schema: &DFSchema, slot: &Slot) -> Result<Arc<dyn PhysicalExpr>> {
    state_with(slot).create_physical_expr(expr, schema)
}

fn state_with(slot: &Slot) -> SessionState {
    let mut state = ENGINE.state.clone();
    state.config_mut().options_mut().extensions.insert(slot.clone());
    state.mark_start_execution();
    state
}

/// What running plans share: settings, memory, no registries.
pub fn task_context() -> Arc<TaskContext> {
    Arc::clone(&ENGINE.task)
}

/// The same for a plan with functions that wait: they find their run's slot here.
pub fn task_context_with(slot: &Slot) -> Arc<TaskContext> {
    Arc::new(task(state_with(slot).config().clone(), &ENGINE.runtime))
}
