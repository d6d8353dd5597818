//! Plots as SVG paths: numbers in, path data out. Pure.

use std::fmt::Write;

/// Height of a plot in SVG units.
pub const HEIGHT: f64 = 80.0;

/// A line; `None` leaves a gap. Values are scaled so that `top` is at the upper edge.
#[must_use]
pub fn line(values: &[Option<f64>], top: f64) -> String {
    let mut path = String::new();
    let mut pen_down = false;
    for (x, value) in values.iter().enumerate() {
        match value {
            Some(value) => {
                let _ = write!(path, "{}{x} {:.1}", if pen_down { 'L' } else { 'M' }, height(*value, top));
                if !pen_down && values.get(x + 1).is_none_or(Option::is_none) {
                    path.push_str("h1");
                }
                pen_down = true;
            }
            None => pen_down = false,
        }
    }
    path
}

/// The area under a line without gaps.
#[must_use]
pub fn area(values: &[f64], top: f64) -> String {
    let mut path = format!("M0 {HEIGHT}");
    for (x, value) in values.iter().enumerate() {
        let _ = write!(path, "L{x} {:.1}", height(*value, top));
    }
    let _ = write!(path, "L{} {HEIGHT}Z", values.len().saturating_sub(1));
    path
}

/// A round number not below the largest value, for the axis.
#[must_use]
pub fn round_up(largest: f64) -> f64 {
    if !largest.is_finite() || largest <= 0.0 {
        return 1.0;
    }
    let magnitude = 10f64.powf(largest.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * magnitude).find(|top| *top >= largest).unwrap_or(largest)
}

fn height(value: f64, top: f64) -> f64 {
    HEIGHT - (value / top).clamp(0.0, 1.0) * (HEIGHT - 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let cases = [(0.0, 1.0), (-3.0, 1.0), (0.7, 1.0), (1.2, 2.0), (3.0, 5.0), (70.0, 100.0), (1000.0, 1000.0)];
        for (largest, top) in cases {
            assert!((round_up(largest) - top).abs() < 1e-9, "{largest}: {}", round_up(largest));
        }
        assert!((round_up(f64::NAN) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn gaps_lift_the_pen() {
        assert_eq!(line(&[Some(0.0), Some(1.0), None, Some(1.0)], 1.0), "M0 80.0L1 2.0M3 2.0h1");
        assert_eq!(line(&[None], 1.0), "");
        assert_eq!(area(&[1.0, 0.0], 1.0), "M0 80L0 2.0L1 80.0L1 80Z");
    }
}
