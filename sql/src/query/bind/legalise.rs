//! What DataFusion's planner made of a statement, with PostgreSQL's meaning put in.
//!
//! Runs once over the bound plan, before any optimiser rule: casts become [`cast`]'s, unary minus is checked, `now()` and its
//! kin become placeholders, literals that were taken out come back with the type they got, and what is still of
//! unknown type is text.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::{
    common::{
        DFSchema, DataFusionError, Result, ScalarValue,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        Expr, ExprSchemable, LogicalPlan,
        expr::{InList, Placeholder, ScalarFunction},
        expr_rewriter::NamePreserver,
        utils::merge_schema,
    },
};

use super::{
    literals::{self, Literals},
    operators::{assign, beside, comparable, plain},
};
use crate::{
    error::{SqlError, SqlState},
    query::{
        failure::external,
        functions::{arithmetic, cast, fields, session, standard},
        run::HoleSource,
        types::{self, Family},
        values::ValueRows,
    },
    types::{ColumnType, PgType, arrow as mapping},
};

/// The plan with PostgreSQL's meaning.
pub fn legalise(plan: LogicalPlan, literals: &Literals) -> Result<LogicalPlan> {
    let legal = plan.transform_up_with_subqueries(|node| {
        let schema = match &node {
            LogicalPlan::TableScan(_) | LogicalPlan::Values(_) => DFSchema::empty(),
            node => merge_schema(&node.inputs()),
        };
        let limit = matches!(node, LogicalPlan::Limit(_));
        let names = NamePreserver::new(&node);
        let node = node.map_expressions(|expr| {
            let saved = names.save(&expr);
            let expr = if limit { assign(expr, &plain(DataType::Int64))? } else { expr };
            let legal = legalise_expr(expr, &schema, literals)?;
            Ok(Transformed::yes(saved.restore(legal)))
        })?;
        node.map_data(|node| match node {
            LogicalPlan::Values(values) => Ok(ValueRows::plan(values.schema, values.values)),
            node => node.recompute_schema(),
        })
    })?;
    Ok(legal.data)
}

/// One expression over rows of `schema`.
pub fn legalise_expr(expr: Expr, schema: &DFSchema, literals: &Literals) -> Result<Expr> {
    let settled = expr.transform_down(|expr| settle(expr, schema))?.data;
    let legal = settled.transform_up(|expr| node(expr, schema, literals))?;
    Ok(legal.data)
}

/// Gives placeholders of unknown type the type their surroundings want, outside of binary operators.
fn settle(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    Ok(match expr {
        Expr::Cast(mut cast) => {
            // A text gets its type first and is cut to the type's length after.
            let field = match mapping::column_type(&cast.field) {
                Ok(to) if to.pg_type.is_text() => types::pg_field(to.pg_type.plain()),
                _ => FieldRef::clone(&cast.field),
            };
            *cast.expr = assign(*cast.expr, &field)?;
            Transformed::yes(Expr::Cast(cast))
        }
        Expr::InList(mut list) => {
            let known = list.expr.to_field(schema)?.1;
            if known.data_type() != &DataType::Null {
                list.list = list.list.into_iter().map(|item| assign(item, &known)).collect::<Result<_>>()?;
            }
            for item in &list.list {
                check_comparable(known.data_type(), &item.get_type(schema)?)?;
            }
            beside_floats(&mut list, schema)?;
            Transformed::yes(Expr::InList(list))
        }
        Expr::Like(mut like) => {
            *like.expr = assign(*like.expr, &types::text_field())?;
            *like.pattern = assign(*like.pattern, &types::text_field())?;
            Transformed::yes(Expr::Like(like))
        }
        Expr::Not(inner) => Transformed::yes(Expr::Not(Box::new(assign(*inner, &plain(DataType::Boolean))?))),
        Expr::Case(mut case) => {
            let boolean = plain(DataType::Boolean);
            let compared = case.expr.as_ref().map(|operand| operand.to_field(schema)).transpose()?;
            for (when, _) in &mut case.when_then_expr {
                let field = compared.as_ref().map_or(&boolean, |(_, field)| field);
                **when = assign(std::mem::take(when.as_mut()), field)?;
            }
            let whole = Expr::Case(case);
            match whole.get_type(schema) {
                Ok(DataType::Null) | Err(_) => Transformed::yes(whole),
                Ok(_) => {
                    let field = whole.to_field(schema)?.1;
                    Transformed::yes(assign(whole, &field)?)
                }
            }
        }
        other => Transformed::no(other),
    })
}

/// A list of numbers of which one is a float is one of double precision.
fn beside_floats(list: &mut InList, schema: &DFSchema) -> Result<()> {
    let mut types = vec![list.expr.get_type(schema)?];
    for item in &list.list {
        types.push(item.get_type(schema)?);
    }
    let Some(float) = types.iter().find(|data_type| types::family(data_type) == Family::Float) else { return Ok(()) };
    *list.expr = beside(std::mem::take(list.expr.as_mut()), &types[0], float);
    for (item, data_type) in list.list.iter_mut().zip(&types[1..]) {
        *item = beside(std::mem::take(item), data_type, float);
    }
    Ok(())
}

fn check_comparable(left: &DataType, right: &DataType) -> Result<()> {
    if comparable(left, right) {
        return Ok(());
    }
    Err(external(
        SqlError::new(
            SqlState::UNDEFINED_FUNCTION,
            format!("operator does not exist: {} = {}", types::sql_name(left), types::sql_name(right)),
        )
        .with_hint("No operator matches the given name and argument types. You might need to add explicit type casts."),
    ))
}

fn node(expr: Expr, schema: &DFSchema, literals: &Literals) -> Result<Transformed<Expr>> {
    Ok(match expr {
        Expr::Placeholder(placeholder) => Transformed::yes(filled(placeholder, literals)?),
        Expr::Negative(inner) => {
            let data_type = inner.get_type(schema)?;
            match types::family(&data_type) {
                // A float has no other sign to overflow to, and zero has two.
                Family::Float => Transformed::no(Expr::Negative(inner)),
                family if family.is_number() => Transformed::yes(arithmetic::negate(*inner, &data_type)?),
                _ => Transformed::no(Expr::Negative(inner)),
            }
        }
        Expr::ScalarFunction(function) => match session::replacement(&function.func) {
            Some(replaced) => Transformed::yes(replaced),
            None => in_zone(function, schema)?,
        },
        Expr::Cast(inner) if inner.field.metadata().contains_key(mapping::TYPE_KEY) => {
            Transformed::yes(own_cast(*inner.expr, &inner.field, schema)?)
        }
        other => Transformed::no(other),
    })
}

/// Fields of a timestamptz are those of the session's wall clock.
fn in_zone(mut function: ScalarFunction, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let truncated = match function.name() {
        fields::EXTRACT => false,
        fields::TRUNCATE => true,
        _ => return Ok(Transformed::no(Expr::ScalarFunction(function))),
    };
    let epoch = matches!(function.args.first(), Some(Expr::Literal(ScalarValue::Utf8(Some(field)), _))
        if field.eq_ignore_ascii_case("epoch"));
    let family = function.args.last().map(|time| Ok::<_, DataFusionError>(types::family(&time.get_type(schema)?)));
    match family.transpose()? {
        Some(Family::TimestampTz) if !epoch => {}
        // A date is truncated as an instant.
        Some(Family::Date) if truncated => {
            let date = function.args.pop().unwrap_or_default();
            function.args.push(cast::call(date, &DataType::Date32, PgType::TimestampTz.plain()));
        }
        Some(Family::Date) => {
            let date = function.args.pop().unwrap_or_default();
            function.args.push(cast::call(date, &DataType::Date32, PgType::Timestamp.plain()));
            return Ok(Transformed::yes(Expr::ScalarFunction(function)));
        }
        _ => return Ok(Transformed::no(Expr::ScalarFunction(function))),
    }
    let zone = || HoleSource::TimeZone.placeholder(types::text_field());
    let timezone = standard::function("timezone")?;
    let time = function.args.pop().unwrap_or_default();
    function.args.push(timezone.call(vec![zone(), time]));
    let local = Expr::ScalarFunction(function);
    Ok(Transformed::yes(if truncated { timezone.call(vec![zone(), local]) } else { local }))
}

/// A taken literal comes back; a parameter that nothing typed is text.
fn filled(placeholder: Placeholder, literals: &Literals) -> Result<Expr> {
    let Some(HoleSource::Parameter(at)) = HoleSource::parse(&placeholder.id) else {
        return Ok(Expr::Placeholder(placeholder));
    };
    let field = placeholder.field.unwrap_or_else(types::text_field);
    match literals.fixed(at) {
        Some(taken) => {
            let to = mapping::column_type(&field).map_err(external)?;
            if taken.pg_type == PgType::Unknown && cast::asks_settings(&DataType::Utf8, to) {
                let text = Expr::Literal(ScalarValue::Utf8(Some(taken.text.clone())), None);
                return Ok(cast::call(text, &DataType::Utf8, to));
            }
            let value = literals::scalar(&taken.text, taken.pg_type, &field).map_err(external)?;
            Ok(Expr::Literal(value, None))
        }
        None => Ok(Expr::Placeholder(Placeholder::new_with_field(placeholder.id, Some(types::unnamed(&field))))),
    }
}

/// A cast the statement asks for.
fn own_cast(inner: Expr, field: &FieldRef, schema: &DFSchema) -> Result<Expr> {
    let from = inner.get_type(schema)?;
    let to = mapping::column_type(field).map_err(external)?;
    if let Expr::Literal(value, _) = &inner
        && value.is_null()
    {
        return Ok(Expr::Literal(ScalarValue::try_from(field.data_type())?, None));
    }
    if mapping::column_type(&inner.to_field(schema)?.1).is_ok_and(|known| known == to)
        && to.type_mod < 0
        && types::family(&from) != Family::Decimal
    {
        return Ok(inner);
    }
    cast::check(&from, to).map_err(external)?;
    let bare_numeric = to == ColumnType::from(PgType::Numeric) && types::family(&from) != Family::Unknown;
    Ok(if bare_numeric { cast::to_numeric(inner, &from) } else { cast::call(inner, &from, to) })
}

/// The types that the plan gives to parameters, by their number from 0.
pub fn parameter_types(plan: &LogicalPlan, into: &mut BTreeMap<usize, FieldRef>) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expression_parameters(expr, into)?;
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(())
}

/// The types that an expression gives to parameters.
pub fn expression_parameters(expr: &Expr, into: &mut BTreeMap<usize, FieldRef>) -> Result<(), DataFusionError> {
    expr.apply(|expr| {
        if let Expr::Placeholder(Placeholder { id, field: Some(field) }) = expr
            && let Some(HoleSource::Parameter(at)) = HoleSource::parse(id)
        {
            into.entry(at).or_insert_with(|| FieldRef::clone(field));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}
