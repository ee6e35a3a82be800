//! What a statement can end with instead of a result: PostgreSQL's error report.
//!
//! The five characters of the SQLSTATE are what programs branch on; the message, detail and hint are for people.
//! Texts follow PostgreSQL's own wherever it has one, since drivers and ORMs match on them.

use std::fmt;

/// A five-character error code of PostgreSQL's appendix A.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub &'static str);

macro_rules! sqlstates {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl SqlState {
            $($(#[$doc])* pub const $name: SqlState = SqlState($code);)*
        }
    };
}

sqlstates! {
    /// successful_completion, for notices.
    SUCCESS = "00000";
    /// warning, for notices.
    WARNING = "01000";
    /// connection_failure.
    CONNECTION_FAILURE = "08006";
    /// protocol_violation.
    PROTOCOL_VIOLATION = "08P01";
    /// feature_not_supported: the message names the feature.
    FEATURE_NOT_SUPPORTED = "0A000";
    /// cardinality_violation.
    CARDINALITY_VIOLATION = "21000";
    /// string_data_right_truncation.
    STRING_DATA_RIGHT_TRUNCATION = "22001";
    /// numeric_value_out_of_range.
    NUMERIC_VALUE_OUT_OF_RANGE = "22003";
    /// null_value_not_allowed.
    NULL_VALUE_NOT_ALLOWED = "22004";
    /// invalid_datetime_format.
    INVALID_DATETIME_FORMAT = "22007";
    /// datetime_field_overflow.
    DATETIME_FIELD_OVERFLOW = "22008";
    /// division_by_zero.
    DIVISION_BY_ZERO = "22012";
    /// character_not_in_repertoire: bytes that are not UTF-8.
    CHARACTER_NOT_IN_REPERTOIRE = "22021";
    /// invalid_parameter_value.
    INVALID_PARAMETER_VALUE = "22023";
    /// untranslatable_character.
    UNTRANSLATABLE_CHARACTER = "22P05";
    /// sequence_generator_limit_exceeded.
    SEQUENCE_GENERATOR_LIMIT_EXCEEDED = "2200H";
    /// invalid_text_representation.
    INVALID_TEXT_REPRESENTATION = "22P02";
    /// invalid_binary_representation.
    INVALID_BINARY_REPRESENTATION = "22P03";
    /// bad_copy_file_format.
    BAD_COPY_FILE_FORMAT = "22P04";
    /// not_null_violation.
    NOT_NULL_VIOLATION = "23502";
    /// check_violation.
    CHECK_VIOLATION = "23514";
    /// foreign_key_violation.
    FOREIGN_KEY_VIOLATION = "23503";
    /// unique_violation.
    UNIQUE_VIOLATION = "23505";
    /// invalid_cursor_state.
    INVALID_CURSOR_STATE = "24000";
    /// active_sql_transaction.
    ACTIVE_SQL_TRANSACTION = "25001";
    /// read_only_sql_transaction.
    READ_ONLY_SQL_TRANSACTION = "25006";
    /// no_active_sql_transaction.
    NO_ACTIVE_SQL_TRANSACTION = "25P01";
    /// in_failed_sql_transaction.
    IN_FAILED_SQL_TRANSACTION = "25P02";
    /// invalid_sql_statement_name.
    INVALID_SQL_STATEMENT_NAME = "26000";
    /// invalid_authorization_specification.
    INVALID_AUTHORIZATION_SPECIFICATION = "28000";
    /// invalid_cursor_name.
    INVALID_CURSOR_NAME = "34000";
    /// invalid_catalog_name: no such database.
    INVALID_CATALOG_NAME = "3D000";
    /// dependent_objects_still_exist.
    DEPENDENT_OBJECTS_STILL_EXIST = "2BP01";
    /// invalid_schema_name.
    INVALID_SCHEMA_NAME = "3F000";
    /// serialization_failure: repeat the transaction.
    SERIALIZATION_FAILURE = "40001";
    /// deadlock_detected: this transaction gave way.
    DEADLOCK_DETECTED = "40P01";
    /// statement_completion_unknown: the commit's answer was lost, it may have happened.
    STATEMENT_COMPLETION_UNKNOWN = "40003";
    /// syntax_error.
    SYNTAX_ERROR = "42601";
    /// insufficient_privilege.
    INSUFFICIENT_PRIVILEGE = "42501";
    /// invalid_name.
    INVALID_NAME = "42602";
    /// generated_always: a value for a column that makes its own.
    GENERATED_ALWAYS = "428C9";
    /// undefined_column.
    UNDEFINED_COLUMN = "42703";
    /// undefined_table.
    UNDEFINED_TABLE = "42P01";
    /// undefined_parameter.
    UNDEFINED_PARAMETER = "42P02";
    /// undefined_function, and operators.
    UNDEFINED_FUNCTION = "42883";
    /// undefined_object: types, settings.
    UNDEFINED_OBJECT = "42704";
    /// duplicate_object: a constraint.
    DUPLICATE_OBJECT = "42710";
    /// duplicate_column.
    DUPLICATE_COLUMN = "42701";
    /// duplicate_prepared_statement.
    DUPLICATE_PREPARED_STATEMENT = "42P05";
    /// duplicate_cursor.
    DUPLICATE_CURSOR = "42P03";
    /// duplicate_schema.
    DUPLICATE_SCHEMA = "42P06";
    /// duplicate_table.
    DUPLICATE_TABLE = "42P07";
    /// invalid_table_definition.
    INVALID_TABLE_DEFINITION = "42P16";
    /// invalid_foreign_key: what it references is not unique.
    INVALID_FOREIGN_KEY = "42830";
    /// invalid_column_reference.
    INVALID_COLUMN_REFERENCE = "42P10";
    /// wrong_object_type.
    WRONG_OBJECT_TYPE = "42809";
    /// indeterminate_datatype.
    INDETERMINATE_DATATYPE = "42P18";
    /// datatype_mismatch.
    DATATYPE_MISMATCH = "42804";
    /// cannot_coerce.
    CANNOT_COERCE = "42846";
    /// grouping_error.
    GROUPING_ERROR = "42803";
    /// ambiguous_column.
    AMBIGUOUS_COLUMN = "42702";
    /// reserved_name.
    RESERVED_NAME = "42939";
    /// disk_full.
    DISK_FULL = "53100";
    /// out_of_memory.
    OUT_OF_MEMORY = "53200";
    /// too_many_connections.
    TOO_MANY_CONNECTIONS = "53300";
    /// configuration_limit_exceeded: a bound of ours.
    CONFIGURATION_LIMIT_EXCEEDED = "53400";
    /// program_limit_exceeded.
    PROGRAM_LIMIT_EXCEEDED = "54000";
    /// statement_too_complex.
    STATEMENT_TOO_COMPLEX = "54001";
    /// too_many_columns.
    TOO_MANY_COLUMNS = "54011";
    /// object_not_in_prerequisite_state.
    OBJECT_NOT_IN_PREREQUISITE_STATE = "55000";
    /// cant_change_runtime_param.
    CANT_CHANGE_RUNTIME_PARAM = "55P02";
    /// lock_not_available.
    LOCK_NOT_AVAILABLE = "55P03";
    /// query_canceled, by request or by statement_timeout.
    QUERY_CANCELED = "57014";
    /// admin_shutdown.
    ADMIN_SHUTDOWN = "57P01";
    /// cannot_connect_now.
    CANNOT_CONNECT_NOW = "57P03";
    /// io_error.
    IO_ERROR = "58030";
    /// snapshot_too_old: what it would see may be gone.
    SNAPSHOT_TOO_OLD = "72000";
    /// internal_error.
    INTERNAL_ERROR = "XX000";
    /// data_corrupted.
    DATA_CORRUPTED = "XX001";
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// How serious a report is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The session ends.
    Fatal,
    /// Worth knowing; the statement went on.
    Warning,
    /// For information.
    Notice,
}

impl Severity {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }
}

/// Names of the objects a report is about: the fields `s`, `t`, `c`, `n`, `d` of an ErrorResponse.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorObject {
    /// Schema.
    pub schema: Option<String>,
    /// Table.
    pub table: Option<String>,
    /// Column.
    pub column: Option<String>,
    /// Data type.
    pub data_type: Option<String>,
    /// Constraint.
    pub constraint: Option<String>,
}

/// A report for the client: an error, or a notice (see [`Severity`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SqlError(Box<Report>);

/// The fields of a [`SqlError`]; boxed there, so that results stay small on the way of success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How serious.
    pub severity: Severity,
    /// What programs branch on.
    pub sqlstate: SqlState,
    /// One line, no full stop.
    pub message: String,
    /// More, for people.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Where in the statement's text, in characters from 1.
    pub position: Option<u32>,
    /// COPY's line and the like (`W`).
    pub place: Option<String>,
    /// The objects it is about.
    pub object: ErrorObject,
}

/// Result of everything in this crate that a client may see fail.
pub type SqlResult<T> = Result<T, SqlError>;

impl SqlError {
    /// An error.
    pub fn new(sqlstate: SqlState, message: impl Into<String>) -> Self {
        SqlError(Box::new(Report {
            severity: Severity::Error,
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            place: None,
            object: ErrorObject::default(),
        }))
    }
    /// A warning or notice.
    pub fn notice(severity: Severity, sqlstate: SqlState, message: impl Into<String>) -> Self {
        let mut notice = Self::new(sqlstate, message);
        notice.0.severity = severity;
        notice
    }
    /// 0A000: `feature` has to wait. The message is "`feature` is not supported yet".
    pub fn unsupported(feature: impl fmt::Display) -> Self {
        Self::new(SqlState::FEATURE_NOT_SUPPORTED, format!("{feature} is not supported yet"))
    }
    /// 42601 with PostgreSQL's words.
    pub fn syntax(message: impl Into<String>) -> Self {
        Self::new(SqlState::SYNTAX_ERROR, message)
    }
    /// XX000: a fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(SqlState::INTERNAL_ERROR, message)
    }
    /// 22P02 with PostgreSQL's words.
    pub fn invalid_input(type_name: &str, input: &str) -> Self {
        Self::new(
            SqlState::INVALID_TEXT_REPRESENTATION,
            format!("invalid input syntax for type {type_name}: \"{input}\""),
        )
    }
    /// 22003 with PostgreSQL's words for a value in text.
    pub fn value_out_of_range(type_name: &str, input: &str) -> Self {
        Self::new(
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            format!("value \"{input}\" is out of range for type {type_name}"),
        )
    }
    /// 22003 with PostgreSQL's words for a computed value.
    pub fn out_of_range(type_name: &str) -> Self {
        Self::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{type_name} out of range"))
    }
    /// 22012.
    pub fn division_by_zero() -> Self {
        Self::new(SqlState::DIVISION_BY_ZERO, "division by zero")
    }
    /// 22P03 with PostgreSQL's words.
    pub fn invalid_binary(what: &str) -> Self {
        Self::new(SqlState::INVALID_BINARY_REPRESENTATION, format!("incorrect binary data format in {what}"))
    }
    /// 57P01 by request of another session; it ends the session.
    pub fn terminated() -> Self {
        Self::new(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command").fatal()
    }
    /// 25P03: the client has left a transaction open for too long; it ends the session.
    pub fn idle_in_transaction() -> Self {
        let message = "terminating connection due to idle-in-transaction timeout";
        Self::new(SqlState("25P03"), message).fatal()
    }
    /// 57P01 because the session's advisory locks may be others' by now; it ends the session.
    pub fn locks_lost() -> Self {
        Self::new(SqlState::ADMIN_SHUTDOWN, "terminating connection because its advisory locks were lost")
            .with_detail("This node could not renew its lease with the placement driver in time.")
            .fatal()
    }
    /// 57014 by request of the client, or of another session.
    pub fn canceled() -> Self {
        Self::new(SqlState::QUERY_CANCELED, "canceling statement due to user request")
    }
    /// 40001: repeat the transaction.
    pub fn serialization(detail: impl Into<String>) -> Self {
        Self::new(SqlState::SERIALIZATION_FAILURE, "could not serialize access due to concurrent update")
            .with_detail(detail)
            .with_hint("Repeat the transaction.")
    }
    /// 40001 at the commit of a serializable transaction.
    pub fn read_conflict() -> Self {
        let message = "could not serialize access due to read/write dependencies among transactions";
        Self::new(SqlState::SERIALIZATION_FAILURE, message)
            .with_detail("Another transaction changed what this one has read.")
            .with_hint("The transaction might succeed if retried.")
    }
    /// 42P01 with PostgreSQL's words.
    pub fn undefined_table(name: &str) -> Self {
        Self::new(SqlState::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"))
    }
    /// 42703 with PostgreSQL's words for a column of a known relation.
    pub fn undefined_column(column: &str, relation: &str) -> Self {
        Self::new(SqlState::UNDEFINED_COLUMN, format!("column \"{column}\" of relation \"{relation}\" does not exist"))
    }
    /// 54001: nested too deep for a stack.
    pub fn too_complex() -> Self {
        Self::new(SqlState::STATEMENT_TOO_COMPLEX, "stack depth limit exceeded")
            .with_detail("The statement is nested too deeply.")
            .with_hint("Write it with fewer levels of parentheses or operators.")
    }

    /// Adds the detail.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }
    /// Adds the hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
    /// Adds the position: characters from 1.
    pub fn with_position(mut self, position: u32) -> Self {
        self.0.position = Some(position);
        self
    }
    /// The position, if there is one, this many characters further on.
    pub fn shifted(mut self, characters: u32) -> Self {
        self.0.position = self.0.position.map(|position| position.saturating_add(characters));
        self
    }
    /// Adds the place, e.g. COPY's line; an earlier one stays.
    pub fn with_place(mut self, place: impl Into<String>) -> Self {
        self.0.place.get_or_insert_with(|| place.into());
        self
    }
    /// Adds schema and table.
    pub fn with_table(mut self, schema: &str, table: &str) -> Self {
        self.0.object.schema = Some(schema.to_owned());
        self.0.object.table = Some(table.to_owned());
        self
    }
    /// Adds the column.
    pub fn with_column(mut self, column: &str) -> Self {
        self.0.object.column = Some(column.to_owned());
        self
    }
    /// Adds the constraint.
    pub fn with_constraint(mut self, constraint: &str) -> Self {
        self.0.object.constraint = Some(constraint.to_owned());
        self
    }
    /// Ends the session.
    pub fn fatal(mut self) -> Self {
        self.0.severity = Severity::Fatal;
        self
    }
}

impl std::ops::Deref for SqlError {
    type Target = Report;
    fn deref(&self) -> &Report {
        &self.0
    }
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.0.message, self.0.sqlstate)
    }
}

impl std::error::Error for SqlError {}

impl From<kv::Error> for SqlError {
    fn from(error: kv::Error) -> Self {
        use kv::Error as E;
        match error {
            E::Conflict { .. } => Self::serialization("Another transaction changed a row that this one writes."),
            E::ReadConflict { .. } => Self::read_conflict(),
            E::Aborted => Self::serialization("The transaction was rolled back by another one that waited for it."),
            E::Fenced => Self::serialization("The schema may have changed since the transaction began."),
            // Callers that know the table name it.
            E::RowLocked { .. } => Self::new(SqlState::LOCK_NOT_AVAILABLE, "could not obtain lock on row"),
            E::LockTimeout => Self::new(SqlState::LOCK_NOT_AVAILABLE, "canceling statement due to lock timeout"),
            E::Deadlock(deadlock) => Self::new(SqlState::DEADLOCK_DETECTED, "deadlock detected")
                .with_detail(deadlock_detail(&deadlock))
                .with_hint("Repeat the transaction."),
            // Callers that know the table say which key of it.
            E::AlreadyExists { .. } => {
                Self::new(SqlState::UNIQUE_VIOLATION, "duplicate key value violates unique constraint")
            }
            E::CommitUnknown(why) => {
                Self::new(SqlState::STATEMENT_COMPLETION_UNKNOWN, "the outcome of the commit is unknown")
                    .with_detail(why)
                    .with_hint("Read back what the transaction wrote before you repeat it.")
            }
            E::Unavailable(why) => Self::unavailable(why),
            E::DiskFull(why) => Self::new(SqlState::DISK_FULL, why)
                .with_hint("Free space on the store's disk, or add a node. Reads go on."),
            E::TooLarge(why) => Self::new(SqlState::PROGRAM_LIMIT_EXCEEDED, why),
            E::SnapshotTooOld { ts, safe_point } => {
                let message = format!("snapshot {ts} is older than the GC safe point {safe_point}");
                Self::new(SqlState::SNAPSHOT_TOO_OLD, message)
                    .with_detail("Versions of rows that only older snapshots see may have been collected.")
                    .with_hint("Begin again, or read at a later time. --gc-retention says how long old versions stay.")
            }
            E::BadTimestamp(why) => Self::internal(why),
            E::Corrupt(why) => Self::new(SqlState::DATA_CORRUPTED, why),
        }
    }
}

/// Who waits for whom, and with which statement.
fn deadlock_detail(deadlock: &kv::deadlock::Deadlock) -> String {
    let waits = deadlock.cycle.iter();
    let edges = waits.clone().map(|wait| format!("Transaction {} waits for transaction {}.", wait.waiter, wait.holder));
    let statements = waits.map(|wait| format!("Transaction {}: {}", wait.waiter, String::from_utf8_lossy(&wait.label)));
    edges.chain(statements).collect::<Vec<_>>().join("\n")
}

impl From<kv::PdError> for SqlError {
    fn from(error: kv::PdError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl SqlError {
    /// 57P03: a part of the cluster did not answer in time; nothing was changed.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self::new(SqlState::CANNOT_CONNECT_NOW, "a part of the cluster is not available")
            .with_detail(why)
            .with_hint("Try again; see \"flaredb ctl cluster status\" if it lasts.")
    }
    /// Running the same again, with a new snapshot, can succeed.
    pub fn is_retryable(&self) -> bool {
        self.sqlstate == SqlState::SERIALIZATION_FAILURE
    }
}
