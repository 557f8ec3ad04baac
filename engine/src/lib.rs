//! Networks, inference and training on libtorch; the mneme-engine binary.
