//! ArrowStorage: the Lance projection of the memory.
