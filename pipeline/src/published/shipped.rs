//! The tables that come with the program, as part of it: `pipeline reproduce` works wherever it is installed.

/// A table's folder as text.
#[derive(Debug, Clone, Copy)]
pub struct Shipped {
    /// Its name on the command line: that of its folder.
    pub name: &'static str,
    /// `table.toml`
    pub table: &'static str,
    /// `values.csv`
    pub values: &'static str,
}

macro_rules! shipped {
    ($($name:literal)*) => {
        [$(Shipped {
            name: $name,
            table: include_str!(concat!("../../../configs/published/", $name, "/table.toml")),
            values: include_str!(concat!("../../../configs/published/", $name, "/values.csv")),
        },)*]
    };
}

/// All of them, in the order of a listing.
pub const SHIPPED: [Shipped; 5] = shipped!("huang2024" "chomsky" "eigenvalues" "crasp-depth" "counting");
