//! The date a template may print: `strftime_now`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Where the time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Clock {
    /// The system's clock, as UTC.
    #[default]
    System,
    /// Always this many seconds after 1970-01-01 00:00 UTC: renderings that can be compared.
    Fixed(i64),
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Clock {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub fn now(self) -> i64 {
        match self {
            Clock::Fixed(seconds) => seconds,
            Clock::System => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)),
        }
    }
}

/// Year, month 1–12 and day 1–31 of a day counted from 1970-01-01, in the Gregorian calendar: `civil_from_days` of
/// Howard Hinnant, "chrono-compatible low-level date algorithms".
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `strftime` in the C locale, of UTC: the directives of C99 except the ISO week ones, and glibc's `-` (no padding).
/// An unknown directive is copied as it stands.
pub fn strftime(seconds: i64, format: &str) -> String {
    let days = seconds.div_euclid(86_400);
    let second_of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let (year, month, day) = civil(days);
    let weekday = (days + 4).rem_euclid(7);
    let first_of_year = (0..=366).rev().find(|back| civil(days - back).0 == year).unwrap_or(0);
    let day_name = DAYS[weekday as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let hour12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let unpadded = chars.next_if_eq(&'-').is_some();
        let mut number = |value: i64, width: usize, fill: char| {
            let digits = value.to_string();
            if !unpadded {
                out.extend(std::iter::repeat_n(fill, width.saturating_sub(digits.len())));
            }
            out.push_str(&digits);
        };
        match chars.next() {
            Some('Y') => number(year, 4, '0'),
            Some('C') => number(year.div_euclid(100), 2, '0'),
            Some('y') => number(year.rem_euclid(100), 2, '0'),
            Some('m') => number(month, 2, '0'),
            Some('d') => number(day, 2, '0'),
            Some('e') => number(day, 2, ' '),
            Some('H') => number(hour, 2, '0'),
            Some('I') => number(hour12, 2, '0'),
            Some('M') => number(minute, 2, '0'),
            Some('S') => number(second, 2, '0'),
            Some('f') => number(0, 6, '0'),
            Some('j') => number(first_of_year + 1, 3, '0'),
            Some('U') => number((first_of_year + 7 - weekday) / 7, 2, '0'),
            Some('W') => number((first_of_year + 7 - (weekday + 6) % 7) / 7, 2, '0'),
            Some('w') => number(weekday, 1, '0'),
            Some('u') => number((weekday + 6) % 7 + 1, 1, '0'),
            Some('s') => number(seconds, 1, '0'),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&strftime(seconds, "%Y-%m-%d")),
            Some('T' | 'X') => out.push_str(&strftime(seconds, "%H:%M:%S")),
            Some('R') => out.push_str(&strftime(seconds, "%H:%M")),
            Some('r') => out.push_str(&strftime(seconds, "%I:%M:%S %p")),
            Some('D' | 'x') => out.push_str(&strftime(seconds, "%m/%d/%y")),
            Some('c') => out.push_str(&strftime(seconds, "%a %b %e %H:%M:%S %Y")),
            Some('Z' | 'z') => {} // as for Python's naive datetimes
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                if unpadded {
                    out.push('-');
                }
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_print_as_strftime_prints_them() {
        // Checked against date(1): 2025-07-10 12:00:00, a Thursday.
        let t = 1_752_148_800;
        let format = "%Y-%m-%d %H:%M:%S|%d %b %Y|%B %-d, %Y|%A %a|%j|%y|%I %p|%e|%U %W|%c|%%|%F %T|%Q";
        let want = "2025-07-10 12:00:00|10 Jul 2025|July 10, 2025|Thursday Thu|191|25|12 PM|10|27 27|\
                    Thu Jul 10 12:00:00 2025|%|2025-07-10 12:00:00|%Q";
        assert_eq!(strftime(t, format), want);
        assert_eq!(strftime(951_827_696, "%F %T %-j"), "2000-02-29 12:34:56 60");
        assert_eq!(strftime(-1, "%F %T %a %-I %p"), "1969-12-31 23:59:59 Wed 11 PM");
        assert_eq!(strftime(4_107_542_400, "%F"), "2100-03-01");
    }
}
