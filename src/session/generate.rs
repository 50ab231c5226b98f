//! Generation: the loop of sample, accept, decode, and what a host sees of it.
