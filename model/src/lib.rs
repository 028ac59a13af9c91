//! Ternary models for Tersor: GGUF and safetensors, converters, the BitNet b1.58 graph, generation.
