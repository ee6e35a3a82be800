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
//! Holes are cut *after* the logical optimiser, which would fold a stable function but leaves placeholders alone.

use std::{any::Any, fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use arrow::datatypes::{DataType, FieldRef};
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
}

impl HoleSource {
    /// The placeholder that stands for it in logical plans.
    pub fn placeholder(self, field: FieldRef) -> Expr {
        let id = match self {
            HoleSource::Parameter(at) => format!("${}", at + 1),
            HoleSource::TransactionTime => "$now".to_owned(),
            HoleSource::User => "$user".to_owned(),
            HoleSource::Database => "$database".to_owned(),
        };
        Expr::Placeholder(Placeholder::new_with_field(id, Some(field)))
    }

    /// The reverse of [`HoleSource::placeholder`]; `None` for a name we did not make.
    pub fn parse(id: &str) -> Option<Self> {
        match id {
            "$now" => Some(HoleSource::TransactionTime),
            "$user" => Some(HoleSource::User),
            "$database" => Some(HoleSource::Database),
            _ => id.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1).map(HoleSource::Parameter),
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
}

/// Where the expressions and leaves of one physical plan find their [`Run`].
#[derive(Clone, Default)]
pub struct Slot(Arc<ArcSwapOption<Run>>);

impl Slot {
    /// An empty one, for the configuration of a new physical plan.
    pub fn new() -> Self {
        Self::default()
    }
    /// Sets what the next run reads.
    pub fn fill(&self, run: Arc<Run>) {
        self.0.store(Some(run));
    }
    /// Forgets the values after a run, so that an idle plan holds no transaction.
    pub fn clear(&self) {
        self.0.store(None);
    }
    /// The values of the run under way.
    pub fn run(&self) -> Result<Arc<Run>> {
        self.0.load_full().ok_or_else(|| DataFusionError::Internal("a plan ran without its parameters".into()))
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

/// The function a placeholder becomes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct HoleFunction {
    index: usize,
    name: String,
    field: FieldRef,
    signature: Signature,
}

impl HoleFunction {
    /// Hole number `index` of its plan, shown by EXPLAIN as its placeholder.
    pub fn call(index: usize, shown: &str, field: FieldRef) -> Expr {
        let function =
            HoleFunction { index, name: shown.to_owned(), field, signature: Signature::nullary(Volatility::Stable) };
        ScalarUDF::new_from_impl(function).call(Vec::new())
    }
    /// Its place in [`Run::values`].
    pub fn index(&self) -> usize {
        self.index
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
        let run = slot.run()?;
        let value = run
            .values
            .get(self.index)
            .ok_or_else(|| DataFusionError::Internal(format!("parameter {} of the plan has no value", self.name)))?;
        Ok(ColumnarValue::Scalar(value.clone()))
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
            let hole = Hole { source, field: Arc::clone(&field) };
            let index = holes.iter().position(|known| *known == hole).unwrap_or_else(|| {
                holes.push(hole);
                holes.len() - 1
            });
            Ok(Transformed::yes(HoleFunction::call(index, &placeholder.id, field)))
        }
        other => Ok(Transformed::no(other)),
    })
}
