//! Which function a name means: PostgreSQL's where we have one, otherwise DataFusion's.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use datafusion::{
    execution::SessionStateDefaults,
    logical_expr::{AggregateUDF, ScalarUDF, WindowUDF},
};

use super::{advisory, aggregates, fields, notify, rounding, scalar, signals, sleep, standard, type_of, zone};

/// All functions that need no catalog.
pub struct Functions {
    scalar: HashMap<String, Arc<ScalarUDF>>,
    aggregate: HashMap<String, Arc<AggregateUDF>>,
    window: HashMap<String, Arc<WindowUDF>>,
}

/// DataFusion's functions that PostgreSQL does not have, or has with another meaning that would silently differ.
/// `to_char` and its kin read chrono's patterns, not PostgreSQL's: an error is better than another text.
const HIDDEN: [&str; 9] = [
    "arrow_cast",
    "arrow_typeof",
    "arrow_metadata",
    "to_char",
    "date_format",
    "to_date",
    "to_timestamp",
    "named_struct",
    "struct",
];

static FUNCTIONS: LazyLock<Functions> = LazyLock::new(Functions::new);

/// The functions of every statement.
pub fn functions() -> &'static Functions {
    &FUNCTIONS
}

impl Functions {
    fn new() -> Self {
        let mut functions = Functions { scalar: HashMap::new(), aggregate: HashMap::new(), window: HashMap::new() };
        for function in SessionStateDefaults::default_scalar_functions() {
            for name in function.aliases().iter().chain([&function.name().to_owned()]) {
                functions.scalar.insert(name.clone(), Arc::clone(&function));
            }
        }
        for function in SessionStateDefaults::default_aggregate_functions()
            .into_iter()
            .chain([aggregates::sum(), aggregates::avg()])
        {
            for name in function.aliases().iter().chain([&function.name().to_owned()]) {
                functions.aggregate.insert(name.clone(), Arc::clone(&function));
            }
        }
        if let Some(every) = functions.aggregate.get("bool_and").cloned() {
            functions.aggregate.insert("every".into(), every);
        }
        for function in SessionStateDefaults::default_window_functions() {
            for name in function.aliases().iter().chain([&function.name().to_owned()]) {
                functions.window.insert(name.clone(), Arc::clone(&function));
            }
        }
        for declaration in standard::DECLARATIONS {
            functions.scalar.insert(declaration.name.to_owned(), Arc::new(scalar::build(*declaration, ())));
        }
        for function in rounding::all()
            .into_iter()
            .chain(fields::all())
            .chain(signals::all())
            .chain(advisory::all())
            .chain([zone::timezone(), type_of::pg_typeof(), sleep::pg_sleep(), notify::pg_notify()])
        {
            functions.scalar.insert(function.name().to_owned(), Arc::new(function));
        }
        for name in HIDDEN {
            functions.scalar.remove(name);
        }
        functions
    }

    /// A scalar function by its lower-case name, with or without `pg_catalog.`.
    pub fn scalar(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.scalar.get(unqualified(name)).cloned()
    }
    /// An aggregate by its name.
    pub fn aggregate(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.aggregate.get(unqualified(name)).cloned()
    }
    /// A window function by its name.
    pub fn window(&self, name: &str) -> Option<Arc<WindowUDF>> {
        self.window.get(unqualified(name)).cloned()
    }
    /// Names of all scalar functions, unsorted.
    pub fn scalar_names(&self) -> Vec<String> {
        self.scalar.keys().cloned().collect()
    }
    /// Names of all aggregates, unsorted.
    pub fn aggregate_names(&self) -> Vec<String> {
        self.aggregate.keys().cloned().collect()
    }
    /// Names of all window functions, unsorted.
    pub fn window_names(&self) -> Vec<String> {
        self.window.keys().cloned().collect()
    }
}

/// `name` without the schema every function of ours lives in.
pub fn unqualified(name: &str) -> &str {
    name.strip_prefix("pg_catalog.").unwrap_or(name)
}
