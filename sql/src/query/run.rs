//! What differs between two runs of one cached physical plan, and how its expressions read it.
//!
//! ```text
//!   logical plan          $1, $now        placeholders: nothing folds them
//!        │ cut()
//!   physical plan         hole#0, hole#1  functions without arguments, one set of plan nodes per Slot
//!        │ Slot::fill(Run)
//!   execution             42, 12:00:01    the values of this run
//! ```
//!
//! DataFusion has no physical placeholder. A hole is a stable function without arguments: DataFusion's
//! simplifiers never fold a leaf. It reads its value from the [`Slot`] in the configuration its plan was made
//! with. One physical plan therefore serves one run at a time; see `plan::Instances` for how several runs of a statement
//! at once get several.
//!
//! A correlated subquery that is looked up row by row ([`super::lookup`]) has holes of another kind: `$outer0` changes
//! within a run, with every row of the outer query.
//!
//! Holes are cut *after* the logical optimiser, which would fold a stable function but leaves placeholders alone.

use std::{any::Any, fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use arrow::{
    datatypes::{DataType, FieldRef},
    record_batch::RecordBatch,
};
use dashmap::DashMap;
use datafusion::{
    common::{
        DataFusionError, Result, ScalarValue,
        config::{ConfigEntry, ConfigExtension, ExtensionOptions},
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{
        ColumnarValue, Expr, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
        Volatility, expr::Placeholder,
    },
};

use super::scan::exec::Source;

/// How the placeholders of outer columns begin.
const OUTER: &str = "$outer";

/// Where the value of a hole comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoleSource {
    /// The statement's parameter, counted from 0; lifted literals follow the client's own.
    Parameter(usize),
    /// When the transaction began: now().
    TransactionTime,
    /// The user.
    User,
    /// The database.
    Database,
    /// The session's process id.
    ProcessId,
    /// How the session shows values, encoded.
    Settings,
    /// The session's time zone.
    TimeZone,
    /// A column of the outer query's row that a subquery is looked up for, by its number in the statement.
    Outer(usize),
}

impl HoleSource {
    /// The placeholder that stands for it in logical plans.
    pub fn placeholder(self, field: FieldRef) -> Expr {
        let id = match self {
            HoleSource::Parameter(at) => format!("${}", at + 1),
            HoleSource::TransactionTime => "$now".to_owned(),
            HoleSource::User => "$user".to_owned(),
            HoleSource::Database => "$database".to_owned(),
            HoleSource::ProcessId => "$pid".to_owned(),
            HoleSource::Settings => "$settings".to_owned(),
            HoleSource::TimeZone => "$zone".to_owned(),
            HoleSource::Outer(at) => format!("{OUTER}{at}"),
        };
        Expr::Placeholder(Placeholder::new_with_field(id, Some(field)))
    }

    /// The reverse of [`HoleSource::placeholder`]; `None` for a name we did not make.
    pub fn parse(id: &str) -> Option<Self> {
        match id {
            "$now" => Some(HoleSource::TransactionTime),
            "$user" => Some(HoleSource::User),
            "$database" => Some(HoleSource::Database),
            "$pid" => Some(HoleSource::ProcessId),
            "$settings" => Some(HoleSource::Settings),
            "$zone" => Some(HoleSource::TimeZone),
            _ => match id.strip_prefix(OUTER) {
                Some(at) => at.parse().ok().map(HoleSource::Outer),
                None => id.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1).map(HoleSource::Parameter),
            },
        }
    }
}

/// A place in a physical plan that is filled at run time. The same source may be read as several types.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hole {
    /// Where the value comes from.
    pub source: HoleSource,
    /// Its type.
    pub field: FieldRef,
}

/// The values of one run, one for each hole of the plan.
#[derive(Debug)]
pub struct Run {
    /// In the order of the plan's holes, each of its hole's type.
    pub values: Vec<ScalarValue>,
    /// What the leaves read through.
    pub source: Arc<Source>,
    /// The rows of the locking queries inside the statement.
    pub locked: Vec<Vec<RecordBatch>>,
}

/// Where the expressions and leaves of one physical plan find their [`Run`].
#[derive(Clone, Default)]
pub struct Slot {
    run: Arc<ArcSwapOption<Run>>,
    /// The outer rows' values that subqueries are being looked up for.
    outer: Arc<DashMap<usize, ScalarValue>>,
}

impl Slot {
    /// An empty one, for the configuration of a new physical plan.
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets what the next run reads.
    pub fn fill(&self, run: Arc<Run>) {
        self.run.store(Some(run));
    }
    /// Forgets the values after a run, so that an idle plan holds no transaction.
    pub fn clear(&self) {
        self.run.store(None);
        self.outer.clear();
    }
    /// Sets the value of an outer column for the look-up that follows.
    pub fn set_outer(&self, at: usize, value: ScalarValue) {
        self.outer.insert(at, value);
    }
    /// The values of the run under way.
    pub fn run(&self) -> Result<Arc<Run>> {
        self.run.load_full().ok_or_else(|| DataFusionError::Internal("a plan ran without its parameters".into()))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

impl ConfigExtension for Slot {
    const PREFIX: &'static str = "flaredb_run";
}

impl ExtensionOptions for Slot {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }
    fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(DataFusionError::Configuration(format!("{}.{key} is not a setting", Self::PREFIX)))
    }
    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}

/// Where a hole finds its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    /// In [`Run::values`].
    Run(usize),
    /// Among the outer columns.
    Outer(usize),
}

/// The function a placeholder becomes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct HoleFunction {
    place: Place,
    name: String,
    field: FieldRef,
    signature: Signature,
}

impl HoleFunction {
    /// A hole of its plan, shown by EXPLAIN as its placeholder.
    fn call(place: Place, shown: &str, field: FieldRef) -> Expr {
        let signature = Signature::nullary(Volatility::Stable);
        let function = HoleFunction { place, name: shown.to_owned(), field, signature };
        ScalarUDF::new_from_impl(function).call(Vec::new())
    }
    /// Its value changes within a run.
    pub fn is_outer(&self) -> bool {
        matches!(self.place, Place::Outer(_))
    }
}

impl ScalarUDFImpl for HoleFunction {
    fn name(&self) -> &str {
        &self.name
    }
    /// The placeholder's, so that cutting renames no column.
    fn schema_name(&self, _arguments: &[Expr]) -> Result<String> {
        Ok(self.name.clone())
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.field.data_type().clone())
    }
    fn return_field_from_args(&self, _arguments: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::clone(&self.field))
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let slot = arguments
            .config_options
            .extensions
            .get::<Slot>()
            .ok_or_else(|| DataFusionError::Internal("a plan was made without a slot for its parameters".into()))?;
        let value = match self.place {
            Place::Run(index) => slot.run()?.values.get(index).cloned(),
            Place::Outer(at) => slot.outer.get(&at).map(|value| value.clone()),
        };
        let value = value
            .ok_or_else(|| DataFusionError::Internal(format!("parameter {} of the plan has no value", self.name)))?;
        Ok(ColumnarValue::Scalar(value))
    }
}

/// Replaces the placeholders of an optimised plan by holes; what they read goes to `holes`.
pub fn cut(plan: LogicalPlan, holes: &mut Vec<Hole>) -> Result<LogicalPlan> {
    let cut = plan.transform_down_with_subqueries(|node| {
        let node = node.map_expressions(|expr| cut_expr(expr, holes))?;
        if node.transformed { node.map_data(LogicalPlan::recompute_schema) } else { Ok(node) }
    })?;
    Ok(cut.data)
}

/// Replaces the placeholders of one expression by holes.
pub fn cut_expr(expr: Expr, holes: &mut Vec<Hole>) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| match expr {
        Expr::Placeholder(placeholder) => {
            let field = placeholder.field.clone().ok_or_else(|| {
                DataFusionError::Plan(format!("Placeholder type could not be resolved: {}", placeholder.id))
            })?;
            let source = HoleSource::parse(&placeholder.id)
                .ok_or_else(|| DataFusionError::Plan(format!("there is no parameter {}", placeholder.id)))?;
            if let HoleSource::Outer(at) = source {
                return Ok(Transformed::yes(HoleFunction::call(Place::Outer(at), &placeholder.id, field)));
            }
            let hole = Hole { source, field: Arc::clone(&field) };
            let index = holes.iter().position(|known| *known == hole).unwrap_or_else(|| {
                holes.push(hole);
                holes.len() - 1
            });
            Ok(Transformed::yes(HoleFunction::call(Place::Run(index), &placeholder.id, field)))
        }
        other => Ok(Transformed::no(other)),
    })
}
