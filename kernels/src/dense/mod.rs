//! Dense f32 kernels for training: products of row-major matrices and the passes between them.
