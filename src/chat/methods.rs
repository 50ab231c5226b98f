//! Python's methods of strings, lists and dictionaries.

use minijinja::{Error, State, Value};

/// Called for a method the engine does not have.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}
