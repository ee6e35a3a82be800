//! EXISTS, IN, ANY and ALL over a subquery as a subquery of one value, for those that are looked up row by row.

use datafusion::{
    common::{Result, ScalarValue},
    functions_aggregate::expr_fn::{bool_and, bool_or, count},
    logical_expr::{
        BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, Subquery,
        expr::{Exists, InSubquery, SetComparison, SetQuantifier},
        lit, not, when,
    },
};

/// What is asked about a subquery.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    /// Its only value.
    Value,
    /// Whether it has a row.
    Exists {
        /// NOT EXISTS.
        negated: bool,
    },
    /// How its values compare.
    Compared {
        /// With what.
        operand: &'a Expr,
        /// `operand op value`
        op: Operator,
        /// For all of them, not for any.
        all: bool,
        /// NOT IN.
        negated: bool,
    },
}

/// The subquery of an expression that is one.
pub fn question(expr: &Expr) -> Option<(&Subquery, Question<'_>)> {
    Some(match expr {
        Expr::ScalarSubquery(subquery) => (subquery, Question::Value),
        Expr::Exists(Exists { subquery, negated }) => (subquery, Question::Exists { negated: *negated }),
        Expr::InSubquery(InSubquery { expr, subquery, negated }) => {
            (subquery, Question::Compared { operand: expr, op: Operator::Eq, all: false, negated: *negated })
        }
        Expr::SetComparison(SetComparison { expr, subquery, op, quantifier }) => {
            let all = *quantifier == SetQuantifier::All;
            (subquery, Question::Compared { operand: expr, op: *op, all, negated: false })
        }
        _ => return None,
    })
}

/// Whether `plan` has a row.
pub fn exists(plan: LogicalPlan) -> Result<LogicalPlan> {
    let rows = LogicalPlanBuilder::from(plan).limit(0, Some(1))?;
    rows.aggregate(Vec::<Expr>::new(), [count(lit(1)).alias("rows")])?.project([col("rows").gt(lit(0_i64))])?.build()
}

/// Whether `operand op value` holds for any or `all` values of `plan`: NULL when it hangs on a comparison with NULL.
pub fn compared(plan: LogicalPlan, operand: Expr, op: Operator, all: bool) -> Result<LogicalPlan> {
    let value = Expr::Column(plan.schema().columns().swap_remove(0));
    let holds = Expr::BinaryExpr(BinaryExpr::new(Box::new(operand), op, Box::new(value)));
    let total = if all { bool_and(holds.clone()) } else { bool_or(holds.clone()) };
    let rows = LogicalPlanBuilder::from(plan).aggregate(
        Vec::<Expr>::new(),
        [total.alias("total"), count(lit(1)).alias("rows"), count(holds).alias("known")],
    )?;
    let decided = if all { not(col("total")) } else { col("total") };
    let answer = when(decided, lit(!all))
        .when(col("rows").gt(col("known")), Expr::Literal(ScalarValue::Boolean(None), None))
        .otherwise(lit(all))?;
    rows.project([answer])?.build()
}

fn col(name: &str) -> Expr {
    Expr::Column(datafusion::common::Column::new_unqualified(name))
}
