//! Tersor's CUDA backend; the NVIDIA driver is loaded at run time.
