//! Functions computed row by row over datums: plain to write, for everything that is not worth a kernel.

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, FieldRef},
};
use datafusion::{
    common::{Result, ScalarValue},
    logical_expr::{
        ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature,
        Volatility,
    },
};

use crate::{
    error::SqlResult,
    query::failure::external,
    types::{
        ColumnType, Datum,
        arrow::{self as mapping, ColumnBuilder},
    },
};

/// What a function computes for one row.
pub type Body<S> = fn(&S, &[Datum]) -> SqlResult<Datum>;

/// A function's declaration.
#[derive(Debug)]
pub struct Declaration<S: 'static> {
    /// Its name.
    pub name: &'static str,
    /// Least and greatest number of arguments.
    pub arity: (usize, usize),
    /// What it returns.
    pub returns: ColumnType,
    /// NULL for a NULL argument, without asking `body`.
    pub strict: bool,
    /// The computation.
    pub body: Body<S>,
}

impl<S> Clone for Declaration<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Declaration<S> {}

/// A declared function over a scope `S` that it may read, such as a catalog snapshot.
#[derive(Debug)]
struct RowFunction<S: 'static> {
    declaration: Declaration<S>,
    scope: S,
    signature: Signature,
}

/// Makes the function; `scope` is what its body reads besides the arguments.
pub fn build<S: Scope>(declaration: Declaration<S>, scope: S) -> ScalarUDF {
    let (least, most) = declaration.arity;
    let arities = (least..=most).map(|n| if n == 0 { TypeSignature::Nullary } else { TypeSignature::Any(n) });
    let signature = Signature::one_of(arities.collect(), Volatility::Immutable);
    ScalarUDF::new_from_impl(RowFunction { declaration, scope, signature })
}

/// What functions may read besides their arguments. Two functions of one name are the same only over one scope.
pub trait Scope: Send + Sync + std::fmt::Debug + Clone + 'static {
    /// Tells scopes apart.
    fn identity(&self) -> u64;
}

impl Scope for () {
    fn identity(&self) -> u64 {
        0
    }
}

impl<S: Scope> PartialEq for RowFunction<S> {
    fn eq(&self, other: &Self) -> bool {
        self.declaration.name == other.declaration.name && self.scope.identity() == other.scope.identity()
    }
}

impl<S: Scope> Eq for RowFunction<S> {}

impl<S: Scope> std::hash::Hash for RowFunction<S> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.declaration.name.hash(state);
    }
}

impl<S: Scope> ScalarUDFImpl for RowFunction<S> {
    fn name(&self) -> &str {
        self.declaration.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(mapping::data_type(self.declaration.returns))
    }
    fn return_field_from_args(&self, _arguments: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(mapping::field(self.declaration.name, self.declaration.returns, true).into())
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let scalar = arguments.args.iter().all(|arg| matches!(arg, ColumnarValue::Scalar(_)));
        let rows = if scalar { 1 } else { arguments.number_rows };
        let arrays = arguments.args.into_iter().map(|arg| arg.into_array(rows)).collect::<Result<Vec<ArrayRef>>>()?;
        let result = self.rows(&arrays, rows).map_err(external)?;
        Ok(if scalar {
            ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
        } else {
            ColumnarValue::Array(result)
        })
    }
}

impl<S: Scope> RowFunction<S> {
    fn rows(&self, arguments: &[ArrayRef], rows: usize) -> SqlResult<ArrayRef> {
        let mut builder = ColumnBuilder::new(self.declaration.returns, rows);
        let mut datums = Vec::with_capacity(arguments.len());
        for row in 0..rows {
            datums.clear();
            for argument in arguments {
                datums.push(mapping::datum_at(argument, row)?);
            }
            let value = if self.declaration.strict && datums.iter().any(Datum::is_null) {
                Datum::Null
            } else {
                (self.declaration.body)(&self.scope, &datums)?
            };
            builder.push(&value)?;
        }
        Ok(builder.finish())
    }
}
