//! NVIDIA's libraries in Python packages, where no loader looks.

use super::library::cut_off_alone;
use std::path::{Path, PathBuf};

/// NVIDIA's libraries by the start of their names, each after those that it needs itself.
#[cfg(not(windows))]
const NVIDIA_LIBRARIES: [&str; 10] = [
    "libcudart.so",
    "libnvJitLink.so",
    "libcublasLt.so",
    "libcublas.so",
    "libnvrtc.so",
    "libcurand.so",
    "libcufft.so",
    "libcudnn", // libcudnn.so itself, which sorts first, loads the others by name
    "libnvinfer.so",
    "libnvonnxparser.so",
];

/// The GPU build of ONNX Runtime needs CUDA, cuDNN and TensorRT. Where it is installed as a Python package, pip has put
/// them beside it (`nvidia/*/lib`, `tensorrt_libs`), where no loader looks; libraries that are already in the process
/// are found. A library that cannot be loaded here is reported when a session requests the provider.
#[cfg(not(windows))]
pub(super) fn preload_python_packages(library: &Path) {
    let Some(capi) = library.parent().filter(|capi| capi.join("libonnxruntime_providers_cuda.so").is_file()) else {
        return;
    };
    for path in python_libraries(capi.ancestors().nth(2).unwrap_or(capi)) {
        if cut_off_alone(&path).is_some() {
            continue;
        }
        let _ = ort::util::preload_dylib(&path); // see above
    }
}

#[cfg(windows)]
pub(super) fn preload_python_packages(_: &Path) {}

/// The libraries of [`NVIDIA_LIBRARIES`] in the Python packages under `site_packages`, in the order of that list.
#[cfg(not(windows))]
fn python_libraries(site_packages: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let nvidia = entries(&site_packages.join("nvidia")).map(|package| package.join("lib"));
    let mut files: Vec<PathBuf> =
        nvidia.chain([site_packages.join("tensorrt_libs")]).flat_map(|folder| entries(&folder)).collect();
    files.sort();
    let named = |file: &&PathBuf, start: &str| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(start) && name.contains(".so")
    };
    NVIDIA_LIBRARIES.iter().flat_map(|start| files.iter().filter(|file| named(file, start)).cloned()).collect()
}

#[cfg(all(test, not(windows)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn libraries_beside_the_python_package_are_found_in_the_order_of_their_needs() {
        let dir = tempfile::tempdir().unwrap();
        let files = [
            "nvidia/cudnn/lib/libcudnn_ops.so.9",
            "nvidia/cudnn/lib/libcudnn.so.9",
            "nvidia/cu13/lib/libcublas.so.13",
            "nvidia/cu13/lib/libcublasLt.so.13",
            "nvidia/cu13/lib/libcudart.so.13",
            "nvidia/cu13/lib/libcudart_static.a",
            "tensorrt_libs/libnvinfer.so.10",
        ];
        for file in files {
            std::fs::create_dir_all(dir.path().join(file).parent().unwrap()).unwrap();
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        let found = python_libraries(dir.path());
        let found: Vec<_> = found.iter().map(|p| p.strip_prefix(dir.path()).unwrap().to_str().unwrap()).collect();
        assert_eq!(found, [files[4], files[3], files[2], files[1], files[0], files[6]]);
        assert!(python_libraries(&dir.path().join("absent")).is_empty());
    }
}
