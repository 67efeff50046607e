//! Reads NumPy's `.npz`: a zip archive of uncompressed `.npy` arrays, as `numpy.savez` writes it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use zip::ZipArchive;

/// An open archive.
pub struct Npz(ZipArchive<File>);

/// A number in an array, from the 8 or 4 bytes of any of the types that the references use.
pub trait Number: Sized {
    fn read(kind: &str, bytes: &[u8]) -> Self;
}

impl Number for i64 {
    fn read(kind: &str, bytes: &[u8]) -> Self {
        assert_eq!(kind, "<i8");
        Self::from_le_bytes(bytes.try_into().unwrap())
    }
}

impl Number for f64 {
    fn read(kind: &str, bytes: &[u8]) -> Self {
        match kind {
            "<f8" => Self::from_le_bytes(bytes.try_into().unwrap()),
            "<f4" => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
            other => panic!("{other} is not a float"),
        }
    }
}

impl Number for f32 {
    fn read(kind: &str, bytes: &[u8]) -> Self {
        assert_eq!(kind, "<f4");
        Self::from_le_bytes(bytes.try_into().unwrap())
    }
}

impl Npz {
    pub fn open(path: &Path) -> Self {
        Self(ZipArchive::new(File::open(path).unwrap()).unwrap())
    }

    /// The array's type as NumPy spells it, `<f4` for example, if the archive has the array.
    pub fn kind(&mut self, name: &str) -> Option<String> {
        Some(Header::of(name, &self.bytes(name)?).kind.to_owned())
    }

    /// Shape and values of an array, if the archive has it.
    pub fn array<T: Number>(&mut self, name: &str) -> Option<(Vec<usize>, Vec<T>)> {
        let bytes = self.bytes(name)?;
        let Header { kind, shape, data } = Header::of(name, &bytes);
        let width: usize = kind[2..].parse().unwrap();
        Some((shape, data.chunks(width).map(|b| T::read(kind, b)).collect()))
    }

    fn bytes(&mut self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        self.0.by_name(&format!("{name}.npy")).ok()?.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }
}

struct Header<'a> {
    kind: &'a str,
    shape: Vec<usize>,
    data: &'a [u8],
}

impl<'a> Header<'a> {
    fn of(name: &str, bytes: &'a [u8]) -> Self {
        assert_eq!(&bytes[..7], b"\x93NUMPY\x01", "{name}: not version 1 of the format");
        let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        let header = std::str::from_utf8(&bytes[10..start]).unwrap();
        let after = |key: &str| header.split_once(key).unwrap().1;
        let kind = after("'descr': '").split('\'').next().unwrap();
        assert!(after("'fortran_order': ").starts_with("False"), "{name}: columns first");
        let shape = after("'shape': (").split(')').next().unwrap();
        let shape = shape.split(',').filter_map(|n| n.trim().parse().ok()).collect();
        Self { kind, shape, data: &bytes[start..] }
    }
}
