pub fn available() -> bool {
    false
}
pub use crate::scalar::OPS;
