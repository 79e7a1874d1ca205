//! What a statement is, by its words: what its functions and procedures do is not looked into.

#[cfg(test)]
mod tests;

/// How a database reads a text, and what it makes of some statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // Where not all drivers are there.
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MariaDB and MySQL.
    MySql,
    /// SQLite.
    Sqlite,
}

/// Answers of a [`Statement`](super::Statement), whose methods say what each is about.
#[derive(Clone, Copy, Default)]
pub(super) struct Meaning {
    pub(super) selects: bool,
    pub(super) reads: bool,
    pub(super) changes: bool,
    pub(super) begins: bool,
    pub(super) only_begins: bool,
    pub(super) ends: bool,
    pub(super) halfway: bool,
    pub(super) several: bool,
}

impl Meaning {
    pub(super) fn of(sql: &str, dialect: Dialect) -> Self {
        let one_text_is_one_transaction = dialect == Dialect::Postgres;
        let mut meaning = Self::default();
        let mut wrote = false;
        for (n, part) in parts(sql, dialect).enumerate() {
            let first = part.first;
            meaning.several = n > 0;
            meaning.selects = n == 0 && is(first, &["select"]) && !part.into;
            meaning.reads = n == 0 && (meaning.selects || part.only_reads());
            meaning.changes |= part.changes_session();
            // What else is done by XA, it does to one that was begun.
            let xa = is(first, &["xa"]) && part.second_is(&["begin", "start"]);
            meaning.begins |= is(first, &["begin", "start", "savepoint"]) || xa;
            meaning.only_begins = n == 0
                && (is(first, &["begin", "savepoint"])
                    || xa
                    || (is(first, &["start"]) && part.second_is(&["transaction"])));
            meaning.ends |= part.ends_transaction();
            meaning.halfway |= is(first, COMMITTING) || (wrote && !one_text_is_one_transaction);
            wrote = !is(first, &["select", "set", "pragma", "use"]);
        }
        meaning
    }
}

/// First words of what lasts as long as the connection does, its prepared statements too.
const SESSION: &[&str] = &[
    "attach",
    "deallocate",
    "detach",
    "discard",
    "listen",
    "lock",
    "pragma",
    "prepare",
    "reset",
    "use",
];

/// First words of what may commit by itself.
const COMMITTING: &[&str] = &["begin", "call", "commit", "do", "end", "execute", "start"];

/// First words of that before which MariaDB and MySQL commit:
/// <https://mariadb.com/kb/en/sql-statements-that-cause-an-implicit-commit/>.
const COMMITTED_BEFORE: &[&str] = &[
    "alter",
    "backup",
    "cache",
    "change",
    "check",
    "flush",
    "grant",
    "install",
    "lock",
    "optimize",
    "rename",
    "repair",
    "reset",
    "revoke",
    "stop",
    "truncate",
    "uninstall",
    "unlock",
];

/// One statement of a text.
struct Part<'s> {
    first: &'s [u8],
    rest: Words<'s>,
    /// INTO is among its words.
    into: bool,
}

impl<'s> Part<'s> {
    fn second_is(&self, any: &[&str]) -> bool {
        self.words().next().is_some_and(|word| is(word, any))
    }

    fn has(&self, any: &[&str]) -> bool {
        self.words().any(|word| is(word, any))
    }

    /// All but the first.
    fn words(&self) -> Words<'s> {
        self.rest.clone()
    }

    fn text(&self) -> &'s [u8] {
        self.rest.rest.trim_ascii_start()
    }

    fn changes_session(&self) -> bool {
        self.changes_at_once() || self.inner().any(|part| part.changes_at_once())
    }

    fn changes_at_once(&self) -> bool {
        let first = self.first;
        let temporary = |word: &[u8]| is(word, &["pg_temp", "temp", "temporary"]);
        match self.rest.dialect {
            Dialect::Postgres if is(first, &["set"]) => {
                !self.second_is(&["local", "constraints", "transaction"])
            }
            // To the others LOCAL is the session, and TRANSACTION the next one.
            _ if is(first, &["set"]) => true,
            // Perhaps after `or replace`, `local`, `global` or `table if not exists`.
            _ if is(first, &["create"]) => self.words().take(5).any(temporary),
            _ if is(first, SESSION) => true,
            // A cursor `with hold`.
            Dialect::Postgres if is(first, &["declare"]) => {
                self.words().take_while(|word| !is(word, &["for"])).any(|word| is(word, &["with"]))
            }
            Dialect::Postgres if self.into && is(first, &["select", "with"]) => {
                let mut words = self.words();
                words.any(|word| is(word, &["into"])) && words.take(2).any(temporary)
            }
            Dialect::Postgres => is(first, &["load"]),
            Dialect::MySql if is(first, &["declare"]) => {
                self.handler().any(|part| part.changes_at_once())
            }
            Dialect::MySql => is(first, &["backup", "flush", "handler"]),
            Dialect::Sqlite => false,
        }
    }

    fn ends_transaction(&self) -> bool {
        self.ends_at_once() || self.inner().any(|part| part.ends_at_once())
    }

    /// In MariaDB, the statements of a block that begin in this part of it.
    fn inner(&self) -> impl Iterator<Item = Self> {
        const BLOCKS: &[&str] =
            &["begin", "case", "else", "elseif", "for", "if", "loop", "repeat", "when", "while"];
        const BEFORE_ONE: &[&str] = &["atomic", "begin", "do", "else", "loop", "repeat", "then"];
        // Perhaps after a label.
        let begins = || is(self.first, BLOCKS) || self.text().starts_with(b":");
        let is_block = self.rest.dialect == Dialect::MySql && begins();
        let (mut words, mut before) = (self.words(), self.first);
        let next = move || loop {
            let first = words.next()?;
            if is(std::mem::replace(&mut before, first), BEFORE_ONE) {
                return Some(Part { first, rest: words.clone(), into: false });
            }
        };
        is_block.then(|| std::iter::from_fn(next)).into_iter().flatten()
    }

    /// What may be the statement of a `declare .. handler for`: it comes after names of errors.
    fn handler(&self) -> impl Iterator<Item = Self> {
        const OTHERS: &[&str] =
            &["call", "declare", "delete", "insert", "replace", "select", "update", "with"];
        let mut words = self.words();
        words.by_ref().find(|word| is(word, &["handler"]));
        std::iter::from_fn(move || {
            let first = words.next().filter(|word| !is(word, OTHERS))?;
            Some(Part { first, rest: words.clone(), into: false })
        })
    }

    fn ends_at_once(&self) -> bool {
        let first = self.first;
        match self.rest.dialect {
            _ if is(first, &["rollback"]) => !self.has(&["to"]),
            _ if is(first, &["commit", "start"]) => true,
            // A block of statements begins nothing.
            Dialect::MySql if is(first, &["begin"]) => {
                self.words().next().is_none_or(|word| is(word, &["work"]))
            }
            Dialect::MySql if is(first, &["create", "drop"]) => {
                let mut words = self.words().skip_while(|word| is(word, &["or", "replace"]));
                match words.next() {
                    // The one thing that is temporary and has it commit.
                    Some(word) if is(word, &["temporary"]) => {
                        let what = words.next();
                        is(first, &["create"]) && what.is_some_and(|word| is(word, &["sequence"]))
                    }
                    what => !what.is_some_and(|word| is(word, &["prepare"])),
                }
            }
            // What its text says is not known here.
            Dialect::MySql if is(first, &["execute"]) => true,
            Dialect::MySql if is(first, &["declare"]) => {
                self.handler().any(|part| part.ends_at_once())
            }
            // Perhaps after `local`.
            Dialect::MySql if is(first, &["analyze"]) => {
                self.words().take(2).any(|word| is(word, &["table"]))
            }
            Dialect::MySql if is(first, &["load"]) => self.second_is(&["index"]),
            Dialect::MySql if is(first, &["set"]) => {
                let variable = self.text().starts_with(b"@");
                (!variable && self.second_is(&["default", "password"])) || self.has(&["autocommit"])
            }
            Dialect::MySql => is(first, COMMITTED_BEFORE),
            Dialect::Postgres if is(first, &["prepare"]) => self.second_is(&["transaction"]),
            Dialect::Postgres | Dialect::Sqlite => is(first, &["abort", "begin", "end"]),
        }
    }

    /// It gives rows, and what it calls aside, does no more.
    fn only_reads(&self) -> bool {
        const READS: &[&str] = &["desc", "describe", "explain", "show", "table", "values"];
        // Where WITH may stand before an INSERT, that has its INTO.
        let reads = || !self.into && !self.has(&["delete", "update"]);
        is(self.first, READS) || (is(self.first, &["with"]) && reads())
    }

    /// It may hold semicolons, up to an end of its own.
    fn has_body(&self) -> bool {
        const ROUTINE: &[&str] = &["event", "function", "package", "procedure", "trigger"];
        // These may be called, or have a column that is called, as those above.
        const OTHERS: &[&str] = &["index", "table", "type", "view"];
        is(self.first, &["create"])
            && self
                .words()
                .take(8)
                .take_while(|word| !is(word, OTHERS))
                .any(|word| is(word, ROUTINE))
            && self.has(&["begin"])
    }

    /// Of the text after it, what comes after the end of its body.
    fn after_body(&self, text: &'s [u8]) -> Option<&'s [u8]> {
        const OTHER_BLOCKS: &[&str] = &["case", "for", "if", "loop", "repeat", "while"];
        // Only in MariaDB and MySQL a block may hold blocks.
        let nested = self.rest.dialect == Dialect::MySql;
        let (mut open, mut rest) = (self.begins(), text);
        while open > 0 {
            let (part, after) = Self::next(rest, self.rest.dialect)?;
            rest = after;
            open += part.begins();
            if is(part.first, &["end"]) && !part.second_is(OTHER_BLOCKS) {
                open = if nested { open - 1 } else { 0 };
            }
        }
        Some(rest)
    }

    /// How many blocks it begins that it does not end at once.
    fn begins(&self) -> usize {
        let mut words = std::iter::once(self.first).chain(self.words()).peekable();
        let mut open = 0;
        while let Some(word) = words.next() {
            let ended = |next: &&[u8]| is(next, &["end"]);
            open += usize::from(is(word, &["begin"]) && words.next_if(ended).is_none());
        }
        open
    }

    /// The next statement of a text, and the text after it.
    fn next(mut text: &'s [u8], dialect: Dialect) -> Option<(Self, &'s [u8])> {
        loop {
            let mut words = Words { rest: text, dialect };
            let mut first = words.next();
            // MariaDB's `set statement .. for ..`: settings of no other statement than that.
            if dialect == Dialect::MySql
                && first.is_some_and(|word| is(word, &["set"]))
                && words.clone().next().is_some_and(|word| is(word, &["statement"]))
            {
                first = words.by_ref().skip_while(|word| !is(word, &["for"])).nth(1);
            }
            let rest = words.clone();
            let into = words.by_ref().fold(false, |into, word| into | is(word, &["into"]));
            let after = words.rest.strip_prefix(b";");
            if let Some(first) = first {
                return Some((Self { first, rest, into }, after.unwrap_or_default()));
            }
            text = after?;
        }
    }
}

fn parts(sql: &str, dialect: Dialect) -> impl Iterator<Item = Part<'_>> {
    // One without an end is none, and the end of a text is looked for once.
    let (mut text, mut bodies) = (sql.as_bytes(), true);
    std::iter::from_fn(move || {
        let (part, mut rest) = Part::next(text, dialect)?;
        if bodies && part.has_body() {
            let after = part.after_body(rest);
            (rest, bodies) = (after.unwrap_or(rest), after.is_some());
        }
        text = rest;
        Some(part)
    })
}

/// These are in small letters.
fn is(word: &[u8], any: &[&str]) -> bool {
    // In place: `eq_ignore_ascii_case` is called for each, and doubles the time for a short SELECT.
    let same = |(b, small): (&u8, u8)| b.to_ascii_lowercase() == small;
    any.iter().any(|known| word.len() == known.len() && word.iter().zip(known.bytes()).all(same))
}

/// The words up to the end of a statement; comments and what is quoted are left out.
#[derive(Clone)]
struct Words<'s> {
    rest: &'s [u8],
    dialect: Dialect,
}

impl<'s> Iterator for Words<'s> {
    type Item = &'s [u8];

    fn next(&mut self) -> Option<&'s [u8]> {
        loop {
            let begins = |b: &u8| {
                is_letter(*b) || matches!(b, b';' | b'-' | b'#' | b'/' | b'\'' | b'"' | b'`' | b'$')
            };
            let start = self.rest.iter().position(begins).unwrap_or(self.rest.len());
            self.rest = self.rest.split_at(start).1;
            let first = *self.rest.first().filter(|first| **first != b';')?;
            if !is_letter(first) {
                self.rest = self.after_gap();
                continue;
            }
            let ends = |b: &u8| !is_letter(*b) && *b != b'$';
            let end = self.rest.iter().position(ends).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            // `E'it\'s'`
            if self.dialect == Dialect::Postgres && rest.starts_with(b"'") && is(word, &["e"]) {
                self.rest = after_quoted(rest, true);
                continue;
            }
            return Some(word);
        }
    }
}

impl<'s> Words<'s> {
    /// What comes after a comment, something quoted, or one sign that begins neither.
    fn after_gap(&self) -> &'s [u8] {
        let (mysql, postgres) = (self.dialect == Dialect::MySql, self.dialect == Dialect::Postgres);
        match self.rest {
            // Without a blank it is two signs to MySQL.
            [b'-', b'-', rest @ ..] if !mysql || rest.first().is_none_or(|b| *b <= b' ') => {
                after(rest, b"\n")
            }
            [b'#', rest @ ..] if mysql => after(rest, b"\n"),
            // It is executed, by that version and later ones.
            [b'/', b'*', b'!', rest @ ..] | [b'/', b'*', b'M', b'!', rest @ ..] if mysql => {
                let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
                rest.split_at(digits).1
            }
            [b'/', b'*', rest @ ..] if postgres => after_nested(rest),
            [b'/', b'*', rest @ ..] => after(rest, b"*/"),
            [b'\'' | b'"', ..] => after_quoted(self.rest, mysql),
            [b'`', ..] if !postgres => after_quoted(self.rest, false),
            [b'$', ..] if postgres => after_dollar(self.rest),
            [_, rest @ ..] => rest,
            [] => &[],
        }
    }
}

/// Of a name, or a number; all that is not ASCII may be.
const fn is_letter(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || !b.is_ascii()
}

fn after<'s>(text: &'s [u8], end: &[u8]) -> &'s [u8] {
    let place = text.windows(end.len()).position(|window| window == end);
    place.map_or(&[], |place| text.split_at(place + end.len()).1)
}

/// After the quote that the text begins with is closed, which one that is doubled does not.
fn after_quoted(text: &[u8], escapes: bool) -> &[u8] {
    let Some((quote, mut rest)) = text.split_first() else { return text };
    while let Some((b, after)) = rest.split_first() {
        rest = after;
        if b == quote {
            match rest.split_first() {
                Some((b, after)) if b == quote => rest = after,
                _ => break,
            }
        }
        if escapes && *b == b'\\' {
            rest = rest.get(1..).unwrap_or(rest);
        }
    }
    rest
}

/// After a comment that may hold comments.
fn after_nested(mut text: &[u8]) -> &[u8] {
    let mut depth = 1_u32;
    while depth > 0 {
        (depth, text) = match text {
            [b'/', b'*', rest @ ..] => (depth + 1, rest),
            [b'*', b'/', rest @ ..] => (depth - 1, rest),
            [_, rest @ ..] => (depth, rest),
            [] => break,
        };
    }
    text
}

/// After `$$ .. $$` or `$tag$ .. $tag$`; `$1` is a value.
fn after_dollar(text: &[u8]) -> &[u8] {
    let Some((_, rest)) = text.split_first() else { return text };
    let tag = rest.iter().take_while(|b| is_letter(**b)).count();
    match (rest.first(), rest.get(tag), text.split_at_checked(tag + 2)) {
        (Some(first), Some(b'$'), Some((quote, body))) if !first.is_ascii_digit() => {
            after(body, quote)
        }
        _ => rest,
    }
}
