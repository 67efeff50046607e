//! The order in which people expect names: numbers within them count as numbers.

use std::cmp::Ordering;

/// A piece of a name.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Number(f64),
    Text(&'a str),
}

/// `width 16` before `width 104`, `lr=3e-4` before `lr=0.001`; letters without regard to case.
pub fn natural(a: &str, b: &str) -> Ordering {
    let compare = |(a, b): (&Piece, &Piece)| match (a, b) {
        (Piece::Number(a), Piece::Number(b)) => a.total_cmp(b),
        (Piece::Text(a), Piece::Text(b)) => a.to_lowercase().cmp(&b.to_lowercase()),
        (Piece::Number(_), Piece::Text(_)) => Ordering::Less,
        (Piece::Text(_), Piece::Number(_)) => Ordering::Greater,
    };
    let (left, right) = (pieces(a), pieces(b));
    let different = left.iter().zip(&right).map(compare).find(|order| order.is_ne());
    different.unwrap_or_else(|| left.len().cmp(&right.len())).then_with(|| a.cmp(b))
}

fn pieces(name: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = number_length(rest);
        if let Some(number) = rest.get(..digits).filter(|_| digits > 0).and_then(|digits| digits.parse().ok()) {
            found.push(Piece::Number(number));
            rest = &rest[digits..];
            continue;
        }
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()).max(1);
        let (text, after) = rest.split_at_checked(text).unwrap_or((rest, ""));
        found.push(Piece::Text(text));
        rest = after;
    }
    found
}

/// How much of the beginning of the text is a number: digits, a fraction, an exponent.
fn number_length(text: &str) -> usize {
    let digits = |from: usize| text[from..].bytes().take_while(u8::is_ascii_digit).count();
    let mut end = digits(0);
    if end == 0 {
        return 0;
    }
    if text[end..].starts_with('.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['-', '+']));
        let exponent = digits(end + 1 + sign);
        if exponent > 0 {
            end += 1 + sign + exponent;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_ordered_as_numbers() {
        let ordered = [
            "1 layer",
            "2 layers",
            "10 layers",
            "lr=1e-7",
            "lr=3e-4",
            "lr=0.001",
            "lr=0.01",
            "LSTM",
            "LSTM · width 16",
            "lstm · width 104",
            "RWKV-5",
            "RWKV-6",
            "tr25_te50",
            "tr25_te100",
            "Ünicode é3",
        ];
        for (i, a) in ordered.iter().enumerate() {
            for (j, b) in ordered.iter().enumerate() {
                assert_eq!(natural(a, b), i.cmp(&j), "{a} {b}");
            }
        }
    }
}
