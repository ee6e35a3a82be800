//! Which subqueries are run row by row, and cutting them out of the expressions they stand in: correlated ones that DataFusion
//! can't make a join of, and EXISTS, IN, ANY and ALL outside of WHERE.
//!
//! Works from the outermost query inwards. The columns of the outer row become placeholders of the subquery's plan, also
//! where a deeper subquery names them; a deeper subquery that is left with placeholders must run as often as the one around it,
//! so it is looked up as well, though nothing of its own row goes in.

use datafusion::{
    common::{
        Column, DFSchema, Result,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        Expr, ExprSchemable, Filter, LogicalPlan, LogicalPlanBuilder, Subquery,
        expr_rewriter::NamePreserver,
        logical_plan::check_subquery_expr,
        utils::{conjunction, merge_schema, split_conjunction_owned},
    },
    optimizer::decorrelate::PullUpCorrelatedExpr,
};

use super::predicates::{self, Question};
use crate::query::{lookup::Lookup, run::HoleSource, types};

/// Numbers the outer columns and the subqueries of one statement.
#[derive(Debug, Default)]
pub struct Numbers {
    next: usize,
}

impl Numbers {
    fn take(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }
}

/// The plan with every subquery that DataFusion can't make a join of as a [`Lookup`].
pub fn separate(plan: LogicalPlan, numbers: &mut Numbers) -> Result<LogicalPlan> {
    let plan = plan.map_children(|child| separate(child, numbers).map(Transformed::yes))?.data;
    let plan = match &plan {
        LogicalPlan::Filter(_) => separate_filter(plan, numbers)?,
        LogicalPlan::Projection(_) | LogicalPlan::Aggregate(_) | LogicalPlan::Sort(_) | LogicalPlan::Window(_) => {
            separate_node(plan, numbers)?
        }
        _ => plan,
    };
    plan.map_subqueries(|subquery| separate(subquery, numbers).map(Transformed::yes)).map(|plan| plan.data)
}

/// Conditions without look-ups are checked first, on fewer columns and so that less is looked up.
fn separate_filter(plan: LogicalPlan, numbers: &mut Numbers) -> Result<LogicalPlan> {
    let LogicalPlan::Filter(filter) = plan else { return Ok(plan) };
    let whole = LogicalPlan::Filter(filter.clone());
    let (mut plain, mut looked_up) = (Vec::new(), Vec::new());
    for condition in split_conjunction_owned(filter.predicate.clone()) {
        let wanted = condition.exists(|expr| Ok(wanted(&whole, expr, numbers)?.is_some()))?;
        if wanted { looked_up.push(condition) } else { plain.push(condition) }
    }
    let Some(condition) = conjunction(looked_up) else { return Ok(whole) };
    let mut input = filter.input;
    if let Some(plain) = conjunction(plain) {
        input = LogicalPlan::Filter(Filter::try_new(plain, input)?).into();
    }
    separate_node(LogicalPlan::Filter(Filter::try_new(condition, input)?), numbers)
}

fn separate_node(plan: LogicalPlan, numbers: &mut Numbers) -> Result<LogicalPlan> {
    let [input] = plan.inputs().try_into().unwrap_or([&plan]);
    let mut input = input.clone();
    let names = NamePreserver::new(&plan);
    let mut found = false;
    let mut exprs = Vec::new();
    for expr in plan.expressions() {
        let saved = names.save(&expr);
        let expr = expr.transform_down(|expr| {
            let Some(Wanted { subquery, outer, negated }) = wanted(&plan, &expr, numbers)? else {
                return Ok(Transformed::no(expr));
            };
            found = true;
            let name = format!("#lookup{}", numbers.take());
            let subquery = separate(subquery, numbers)?;
            input = Lookup::plan(std::mem::take(&mut input), subquery, outer, name.clone())?;
            let value = Expr::Column(Column::new_unqualified(name));
            let value = if negated { Expr::Not(Box::new(value)) } else { value };
            Ok(Transformed::new(value, true, TreeNodeRecursion::Jump))
        })?;
        exprs.push(saved.restore(expr.data));
    }
    if !found {
        return Ok(plan);
    }
    let columns = plan.schema().columns();
    let changed = plan.with_new_exprs(exprs, vec![input])?;
    if changed.schema().fields().len() == columns.len() {
        return Ok(changed);
    }
    LogicalPlanBuilder::from(changed).project(columns.into_iter().map(Expr::Column))?.build()
}

/// A subquery of one value, whose outer columns are placeholders.
struct Wanted {
    subquery: LogicalPlan,
    outer: Vec<(usize, Expr)>,
    /// Its value is the opposite of what is asked.
    negated: bool,
}

/// The subquery that `expr` of `node` is, when it is one to look up.
fn wanted(node: &LogicalPlan, expr: &Expr, numbers: &mut Numbers) -> Result<Option<Wanted>> {
    let Some((subquery, question)) = predicates::question(expr) else { return Ok(None) };
    let row = merge_schema(&node.inputs());
    let mut binding = Binding { row: &row, outer: Vec::new(), deep: false, numbers };
    let mut bound = binding.plan(subquery.subquery.as_ref().clone(), &mut Vec::new())?;
    let Binding { mut outer, deep, .. } = binding;
    let left_alone = match question {
        Question::Value => {
            let free = outer.is_empty() && !mentions_outer(&bound)?;
            free || (!outer.is_empty() && !deep && is_joinable(node, expr, subquery, question, numbers)?)
        }
        // DataFusion joins these for WHERE only.
        _ => matches!(node, LogicalPlan::Filter(_)) && !deep && is_joinable(node, expr, subquery, question, numbers)?,
    };
    if left_alone {
        return Ok(None);
    }
    let mut negated = false;
    match question {
        Question::Value => {}
        Question::Exists { negated: not } => {
            bound = predicates::exists(bound)?;
            negated = not;
        }
        Question::Compared { operand, op, all, negated: not } => {
            let number = numbers.take();
            let field = types::unnamed(&operand.to_field(&row)?.1);
            bound = predicates::compared(bound, HoleSource::Outer(number).placeholder(field), op, all)?;
            outer.push((number, operand.clone()));
            negated = not;
        }
    }
    Ok(Some(Wanted { subquery: bound, outer, negated }))
}

/// DataFusion makes a join of it.
fn is_joinable(
    node: &LogicalPlan,
    expr: &Expr,
    subquery: &Subquery,
    question: Question<'_>,
    numbers: &mut Numbers,
) -> Result<bool> {
    if !matches!(node, LogicalPlan::Filter(_) | LogicalPlan::Projection(_)) {
        return Ok(false);
    }
    // As it will see it: a look-up inside may stand in its way.
    let plan = separate(subquery.subquery.as_ref().clone(), numbers)?;
    let mut pulled = match question {
        Question::Value => PullUpCorrelatedExpr::new().with_need_handle_count_bug(true),
        Question::Exists { .. } => PullUpCorrelatedExpr::new().with_exists_sub_query(true),
        Question::Compared { .. } => PullUpCorrelatedExpr::new(),
    };
    Ok(check_subquery_expr(node, &plan, expr).is_ok() && plan.rewrite(&mut pulled).is_ok() && pulled.can_pull_up)
}

/// Depends on rows that a look-up around it is for.
fn mentions_outer(plan: &LogicalPlan) -> Result<bool> {
    let mut mentions = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            mentions |= expr.exists(|expr| {
                Ok(matches!(expr, Expr::Placeholder(placeholder)
                    if matches!(HoleSource::parse(&placeholder.id), Some(HoleSource::Outer(_)))))
            })?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(mentions)
}

/// Puts placeholders in the place of an outer row's columns.
struct Binding<'a> {
    row: &'a DFSchema,
    outer: Vec<(usize, Expr)>,
    /// A subquery of the subquery names the row.
    deep: bool,
    numbers: &'a mut Numbers,
}

impl Binding<'_> {
    /// `between` are the rows of the queries between the outer one and this plan, whose columns hide it.
    fn plan(&mut self, plan: LogicalPlan, between: &mut Vec<DFSchema>) -> Result<LogicalPlan> {
        let bound = plan.transform_up(|node| {
            let node = node.map_expressions(|expr| expr.transform_up(|expr| Ok(self.column(expr, between))))?.data;
            between.push(merge_schema(&node.inputs()));
            let node = node.map_subqueries(|subquery| {
                let LogicalPlan::Subquery(subquery) = subquery else { return Ok(Transformed::no(subquery)) };
                let plan = self.plan(subquery.subquery.as_ref().clone(), between)?;
                let outer_ref_columns = plan.all_out_ref_exprs();
                let bound = Subquery { subquery: plan.into(), outer_ref_columns, spans: subquery.spans };
                Ok(Transformed::yes(LogicalPlan::Subquery(bound)))
            })?;
            between.pop();
            Ok(Transformed::yes(node.data))
        })?;
        Ok(bound.data)
    }

    fn column(&mut self, expr: Expr, between: &[DFSchema]) -> Transformed<Expr> {
        let Expr::OuterReferenceColumn(field, column) = &expr else { return Transformed::no(expr) };
        let hidden = between.iter().any(|row| row.has_column(column));
        if hidden || !self.row.has_column(column) {
            return Transformed::no(expr);
        }
        self.deep |= !between.is_empty();
        let named = Expr::Column(column.clone());
        let known = self.outer.iter().find(|(_, known)| *known == named).map(|(number, _)| *number);
        let number = known.unwrap_or_else(|| {
            let number = self.numbers.take();
            self.outer.push((number, named));
            number
        });
        Transformed::yes(HoleSource::Outer(number).placeholder(types::unnamed(field)))
    }
}
