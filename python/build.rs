//! Linker arguments of a Python module, which macOS needs where maturin does not give them.

fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
