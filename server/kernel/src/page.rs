//! Lists: one page at a time, with links to the neighbours.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;

use crate::call::OriginalUri;
use crate::db::{Condition, FromRow, Read, Sql, Value};
use crate::kernel::Kernel;
use crate::routes::{Argument, OperationDoc};
use crate::{Error, Result};

/// Results on a page unless the caller asks for another number.
pub const PAGE_SIZE_DEFAULT: i64 = 10;
/// Results on a page at most.
pub const PAGE_SIZE_MAX: i64 = 100;

/// One page of a list.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "PageOf{T}")]
pub struct Page<T> {
    /// Results on all pages together.
    pub count: i64,
    /// Address of the page before, null on the first.
    pub prev: Option<String>,
    /// Address of the page after, null on the last.
    pub next: Option<String>,
    /// Results of this page.
    pub results: Vec<T>,
}

/// Which page is asked for, and the address it was asked by.
#[derive(Debug, Clone)]
pub struct Paging {
    page: i64,
    size: i64,
    path: String,
    others: Vec<(String, String)>,
}

impl Paging {
    fn parse(path: &str, query: &str, page_number_is_size: bool) -> Result<Self> {
        let (mut page, mut page_number, mut size) = (None, None, None);
        let mut others = Vec::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let slot = match name.as_ref() {
                "page" => &mut page,
                "page_number" => &mut page_number,
                "page_size" => &mut size,
                _ => {
                    others.push((name.into_owned(), value.into_owned()));
                    continue;
                }
            };
            let number = value.trim().parse::<i64>().ok().filter(|number| *number >= 1);
            *slot = Some(number.ok_or_else(|| Error::invalid(name.as_ref(), "must be a whole number from 1"))?);
        }
        if page_number_is_size && page.is_some() && size.is_none() {
            size = page_number.take();
        }
        let size = size.unwrap_or(PAGE_SIZE_DEFAULT);
        if size > PAGE_SIZE_MAX {
            return Err(Error::invalid("page_size", format!("must be at most {PAGE_SIZE_MAX}")));
        }
        Ok(Self { page: page.or(page_number).unwrap_or(1), size, path: path.to_owned(), others })
    }

    fn link(&self, page: i64) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(&self.others);
        query.append_pair("page", &page.to_string());
        query.append_pair("page_size", &self.size.to_string());
        format!("{}?{}", self.path, query.finish())
    }

    /// Puts the page together from its results and the number of all.
    #[must_use]
    pub fn page<T>(&self, count: i64, results: Vec<T>) -> Page<T> {
        let last = count.saturating_add(self.size - 1) / self.size;
        Page {
            count,
            prev: (self.page > 1).then(|| self.link((self.page - 1).min(last.max(1)))),
            next: (self.page < last).then(|| self.link(self.page + 1)),
            results,
        }
    }

    /// Reads one page: `count` and `rows` hold `/* filters */` where the conditions go and share `arguments`.
    ///
    /// # Errors
    /// When the database is not available.
    pub async fn read<T: FromRow>(
        &self,
        read: &mut Read,
        count: Sql,
        rows: Sql,
        arguments: Vec<Value>,
        conditions: &[Condition],
    ) -> Result<(i64, Vec<T>)> {
        let mut bound = arguments.clone();
        let count: i64 = read.value(count.filtered(conditions, &mut bound), bound).await?;
        let mut bound = arguments;
        let rows = rows.filtered(conditions, &mut bound).paged(self.size, (self.page - 1).saturating_mul(self.size));
        Ok((count, read.all(rows, bound).await?))
    }
}

impl FromRequestParts<Kernel> for Paging {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Kernel) -> Result<Self> {
        let original = parts.extensions.get::<OriginalUri>().map_or_else(|| parts.uri.clone(), |uri| uri.0.clone());
        // The instance list alone documents `page_number` as the size.
        let instances = parts.uri.path().ends_with("/instances/");
        Self::parse(original.path(), original.query().unwrap_or(""), instances)
    }
}

impl Argument for Paging {
    fn describe(operation: &mut OperationDoc, schemas: &mut SchemaGenerator) {
        for (name, text) in [("page", "Page, from 1."), ("page_size", "Results on a page: 10 by default, at most 100.")]
        {
            let mut schema = schemas.subschema_for::<i64>();
            schema.insert("description".to_owned(), text.into());
            operation.query.push((name.to_owned(), schema));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_keep_path_and_filters_and_end_in_null() {
        let page =
            |query: &str, count| Paging::parse("/api/v1/application/", query, false).unwrap().page(count, vec![0]);
        let middle = page("name=a%20b&page=2&page_size=5", 11);
        assert_eq!(middle.prev.as_deref(), Some("/api/v1/application/?name=a+b&page=1&page_size=5"));
        assert_eq!(middle.next.as_deref(), Some("/api/v1/application/?name=a+b&page=3&page_size=5"));
        assert_eq!((page("", 10).prev, page("", 10).next), (None, None));
        assert_eq!(page("page=9", 11).prev.as_deref(), Some("/api/v1/application/?page=2&page_size=10"));
    }

    #[test]
    fn nonsense_is_named() {
        for (query, field) in
            [("page=0", "page"), ("page=x", "page"), ("page_size=101", "page_size"), ("page_number=-1", "page_number")]
        {
            let error = Paging::parse("/", query, false).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{query}: {error}");
        }
        assert_eq!(Paging::parse("/", "page=2&page_number=7", true).unwrap().size, 7);
    }
}
