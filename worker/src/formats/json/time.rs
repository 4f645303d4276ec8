//! Dates and times as ISO 8601 text: parsing and printing, in the proleptic Gregorian calendar, years 0000 to 9999, UTC.

use arrow::datatypes::TimeUnit;

/// Days from 0000-01-01 to 1970-01-01, negated: the least day.
pub(super) const MIN_DAY: i64 = -719_528;
/// 9999-12-31.
pub(super) const MAX_DAY: i64 = 2_932_896;
pub(super) const DAY_SECONDS: i64 = 86_400;

/// Units of a second.
pub(super) const fn per_second(unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    }
}

/// Days since the epoch of a civil date (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
pub(super) const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y - era * 400;
    let mp = (month + 9) % 12;
    let doy = (153 * mp + 2) / 5 + day - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

/// Year, month, day of days since the epoch.
pub(super) const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z - era * 146_097;
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

const fn month_days(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

fn number(text: &[u8]) -> Option<i64> {
    let mut value = 0;
    for b in text {
        if !b.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(b - b'0');
    }
    Some(value)
}

/// `YYYY-MM-DD` to days since the epoch.
pub(super) fn parse_date(text: &[u8]) -> Option<i64> {
    if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
        return None;
    }
    let (year, month, day) = (
        number(&text[..4])?,
        number(&text[5..7])?,
        number(&text[8..])?,
    );
    ((1..=12).contains(&month) && (1..=month_days(year, month)).contains(&day))
        .then(|| days_from_civil(year, month, day))
}

/// `HH:MM[:SS[.fraction]]` to units since midnight, and what follows. Digits beyond the unit are cut off, as Flink does.
pub(super) fn parse_time(text: &[u8], unit: TimeUnit) -> Option<(i64, &[u8])> {
    if text.len() < 5 || text[2] != b':' {
        return None;
    }
    let (hour, minute) = (number(&text[..2])?, number(&text[3..5])?);
    let mut rest = &text[5..];
    let mut second = 0;
    let mut fraction = 0;
    if rest.first() == Some(&b':') {
        second = number(rest.get(1..3)?)?;
        rest = &rest[3..];
        if let Some(b'.' | b',') = rest.first() {
            let digits = rest[1..].iter().take_while(|b| b.is_ascii_digit()).count();
            if !(1..=9).contains(&digits) {
                return None;
            }
            let scale = 10i64.pow(9 - digits as u32);
            fraction = number(&rest[1..=digits])? * scale;
            rest = &rest[1 + digits..];
        }
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let units = per_second(unit);
    let seconds = hour * 3_600 + minute * 60 + second;
    Some((seconds * units + fraction / (1_000_000_000 / units), rest))
}

/// The date that was read last: times that follow each other mostly share it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct LastDay(Option<([u8; 10], i64)>);

impl LastDay {
    #[inline]
    fn parse(&mut self, text: &[u8; 10]) -> Option<i64> {
        match self.0 {
            Some((last, days)) if last == *text => Some(days),
            _ => {
                let days = parse_date(text)?;
                self.0 = Some((*text, days));
                Some(days)
            }
        }
    }
}

/// `YYYY-MM-DD[(T| )HH:MM[:SS[.fraction]][Z|±HH[[:]MM]]]` to units since the epoch; without an offset: UTC.
pub(super) fn parse_timestamp(text: &[u8], unit: TimeUnit, day: &mut LastDay) -> Option<i64> {
    let days = day.parse(text.first_chunk()?)?;
    let per = per_second(unit);
    let (mut time, mut offset) = (0, 0);
    match text.get(10) {
        None => {}
        Some(b'T' | b't' | b' ') => {
            let (units, rest) = parse_time(&text[11..], unit)?;
            time = units;
            offset = parse_offset(rest)?;
        }
        Some(_) => return None,
    }
    let seconds = days * DAY_SECONDS - offset;
    let value = seconds.checked_mul(per)?.checked_add(time)?;
    in_range(value.div_euclid(per)).then_some(value)
}

/// Whether seconds since the epoch lie in the years 0000 to 9999.
pub(super) const fn in_range(seconds: i64) -> bool {
    seconds >= MIN_DAY * DAY_SECONDS && seconds < (MAX_DAY + 1) * DAY_SECONDS
}

/// Seconds east of UTC.
fn parse_offset(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text {
        [] | [b'Z' | b'z'] => return Some(0),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match digits {
        [_, _] => (number(digits)?, 0),
        [_, _, _, _] => (number(&digits[..2])?, number(&digits[2..])?),
        [_, _, b':', _, _] => (number(&digits[..2])?, number(&digits[3..])?),
        _ => return None,
    };
    (hours <= 18 && minutes <= 59).then_some(sign * (hours * 3_600 + minutes * 60))
}

fn two(value: i64, out: &mut [u8]) {
    out[0] = b'0' + (value / 10) as u8;
    out[1] = b'0' + (value % 10) as u8;
}

/// `YYYY-MM-DD`. `days` lies in the years 0000 to 9999, else the nearest such day is printed.
pub(super) fn write_date(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = civil_from_days(days.clamp(MIN_DAY, MAX_DAY));
    let mut text = *b"0000-00-00";
    two(year / 100, &mut text[0..2]);
    two(year % 100, &mut text[2..4]);
    two(month, &mut text[5..7]);
    two(day, &mut text[8..10]);
    out.extend_from_slice(&text);
}

/// `HH:MM:SS` and as many digits as the unit has.
pub(super) fn write_time(units: i64, unit: TimeUnit, out: &mut Vec<u8>) {
    let per = per_second(unit);
    let seconds = (units / per) % DAY_SECONDS;
    let mut text = *b"00:00:00";
    two(seconds / 3_600, &mut text[0..2]);
    two(seconds / 60 % 60, &mut text[3..5]);
    two(seconds % 60, &mut text[6..8]);
    out.extend_from_slice(&text);
    let digits = per.ilog10() as usize;
    if digits > 0 {
        let mut fraction = *b".000000000";
        let mut rest = units % per;
        for place in fraction[1..=digits].iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&fraction[..=digits]);
    }
}

/// `YYYY-MM-DDTHH:MM:SS[.fraction]`.
pub(super) fn write_timestamp(value: i64, unit: TimeUnit, out: &mut Vec<u8>) {
    let per_day = DAY_SECONDS * per_second(unit);
    write_date(value.div_euclid(per_day), out);
    out.push(b'T');
    write_time(value.rem_euclid(per_day), unit, out);
}
