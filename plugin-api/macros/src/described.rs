//! `#[derive(Described)]`, and descriptions of types for the other macros.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Data, DeriveInput, Error, Fields, GenericArgument, LitStr, PathArguments, Result, Type};

pub(crate) fn expand(item: TokenStream) -> Result<TokenStream> {
    let input: DeriveInput = syn::parse2(item)?;
    if !input.generics.params.is_empty() {
        return Err(Error::new(input.ident.span(), "a described type has no type parameters"));
    }
    let (me, doc, serde) = (&input.ident, crate::doc(&input.attrs), Serde::read(&input.attrs));
    let name = me.to_string();
    // A name with a module is a class. Any other name is ignored here.
    let class = serde.rename.clone().filter(|name| name.contains('.')).unwrap_or_default();
    let (fields, variants, leaves) = match &input.data {
        Data::Struct(data) if !serde.other && is_plain(&data.fields) => {
            let leaves = leaves_of(&data.fields);
            (fields(&data.fields, serde.rename_all.as_deref()), quote!(), leaves)
        }
        Data::Enum(data) if !serde.other => {
            let mut leaves = Vec::new();
            let variants = data.variants.iter().filter_map(|variant| {
                let own = Serde::read(&variant.attrs);
                let name = own
                    .rename
                    .clone()
                    .unwrap_or_else(|| variant_name(&variant.ident.to_string(), serde.rename_all.as_deref()));
                let (doc, fields) = (
                    crate::doc(&variant.attrs),
                    fields(&variant.fields, own.rename_all.as_deref().or(serde.rename_all_fields.as_deref())),
                );
                leaves.extend(leaves_of(&variant.fields));
                (!own.skip).then(|| {
                    quote! {
                        ::plugin_api::manifest::VariantManifest {
                            name: #name.to_owned(),
                            doc: #doc.to_owned(),
                            fields: ::std::vec![#fields],
                        },
                    }
                })
            });
            let variants: TokenStream = variants.collect();
            (quote!(), variants, leaves)
        }
        // Its serialized form differs from its fields.
        Data::Struct(_) | Data::Enum(_) => (quote!(), quote!(), Vec::new()),
        Data::Union(_) => return Err(Error::new(me.span(), "a union has no fields to describe")),
    };
    let probes = probes(&leaves);
    Ok(quote! {
        impl ::plugin_api::Described for #me {
            fn describe(into: &mut ::plugin_api::__private::Descriptions) {
                let new = into.data(::core::any::type_name::<Self>(), ::plugin_api::manifest::TypeManifest {
                    name: #name.to_owned(),
                    class: #class.to_owned(),
                    doc: #doc.to_owned(),
                    fields: ::std::vec![#fields],
                    variants: ::std::vec![#variants],
                });
                if new {
                    #probes
                }
            }
        }
    })
}

/// The serde attributes that change names on the wire.
#[derive(Default)]
pub(crate) struct Serde {
    rename: Option<String>,
    pub(crate) rename_all: Option<String>,
    /// The same, for the fields of all variants.
    rename_all_fields: Option<String>,
    /// Whether it is omitted on the wire.
    skip: bool,
    /// Whether it may be absent.
    optional: bool,
    /// Whether its fields become those of the type that contains it.
    flatten: bool,
    /// Whether its serialized form differs: untagged, transparent, or by another type.
    other: bool,
}

impl Serde {
    pub(crate) fn read(attributes: &[Attribute]) -> Self {
        let mut all = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
            // Serde's own macro reports what cannot be parsed here.
            let _ = attribute.parse_nested_meta(|meta| {
                let is = |word: &str| meta.path.is_ident(word);
                let names = [
                    (is("rename"), &mut all.rename),
                    (is("rename_all"), &mut all.rename_all),
                    (is("rename_all_fields"), &mut all.rename_all_fields),
                ];
                if let Some((_, name)) = names.into_iter().find(|(is, _)| *is) {
                    return name_of(&meta, name);
                }
                all.optional |= is("skip_serializing_if") || is("skip_serializing");
                all.skip |= is("skip");
                all.flatten |= is("flatten");
                all.other |= ["untagged", "transparent", "into", "from", "try_from", "tag", "with", "serialize_with"]
                    .iter()
                    .any(|word| is(word));
                // The rest is parsed and ignored.
                if meta.input.peek(syn::Token![=]) {
                    let _: syn::Expr = meta.value()?.parse()?;
                } else if meta.input.peek(syn::token::Paren) {
                    let rest;
                    syn::parenthesized!(rest in meta.input);
                    let _: TokenStream = rest.parse()?;
                }
                Ok(())
            });
        }
        all
    }
}

/// `= "name"`, or `(serialize = "name", deserialize = "other")`, of which the first is the name that is written.
fn name_of(meta: &syn::meta::ParseNestedMeta<'_>, into: &mut Option<String>) -> Result<()> {
    if meta.input.peek(syn::Token![=]) {
        *into = Some(meta.value()?.parse::<LitStr>()?.value());
        return Ok(());
    }
    meta.parse_nested_meta(|inner| {
        let text: LitStr = inner.value()?.parse()?;
        if inner.path.is_ident("serialize") {
            *into = Some(text.value());
        }
        Ok(())
    })
}

/// Joins the words of a name, each capitalized.
fn capitals(words: impl Iterator<Item = impl AsRef<str>>) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
    };
    words.map(|word| capital(word.as_ref())).collect()
}

fn small_first(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_lowercase().to_string() + letters.as_str()).unwrap_or_default()
}

/// A field's name as serde's `rename_all` has it.
fn field_name(name: &str, case: Option<&str>) -> String {
    let name = name.trim_start_matches("r#");
    match case {
        Some("UPPERCASE" | "SCREAMING_SNAKE_CASE") => name.to_ascii_uppercase(),
        Some("PascalCase") => capitals(name.split('_')),
        Some("camelCase") => small_first(&capitals(name.split('_'))),
        Some("kebab-case") => name.replace('_', "-"),
        Some("SCREAMING-KEBAB-CASE") => name.to_ascii_uppercase().replace('_', "-"),
        _ => name.to_owned(),
    }
}

/// A variant's name as serde's `rename_all` has it.
fn variant_name(name: &str, case: Option<&str>) -> String {
    let name = name.trim_start_matches("r#");
    let snake = || {
        name.char_indices().fold(String::new(), |mut snake, (at, letter)| {
            snake.extend((at > 0 && letter.is_uppercase()).then_some('_'));
            snake.push(letter.to_ascii_lowercase());
            snake
        })
    };
    match case {
        Some("lowercase") => name.to_ascii_lowercase(),
        Some("UPPERCASE") => name.to_ascii_uppercase(),
        Some("camelCase") => small_first(name),
        Some("snake_case") => snake(),
        Some("SCREAMING_SNAKE_CASE") => snake().to_ascii_uppercase(),
        Some("kebab-case") => snake().replace('_', "-"),
        Some("SCREAMING-KEBAB-CASE") => snake().to_ascii_uppercase().replace('_', "-"),
        _ => name.to_owned(),
    }
}

/// Whether every field is written under its own name.
fn is_plain(fields: &Fields) -> bool {
    fields.iter().all(|field| !Serde::read(&field.attrs).flatten)
}

/// The manifests of named fields.
pub(crate) fn fields(fields: &Fields, case: Option<&str>) -> TokenStream {
    let Fields::Named(named) = fields else { return quote!() };
    let told = named.named.iter().filter_map(|field| {
        let serde = Serde::read(&field.attrs);
        if serde.skip {
            return None;
        }
        let (own, optional) = (field.ident.as_ref()?.to_string(), serde.optional);
        let name = serde.rename.unwrap_or_else(|| field_name(&own, case));
        let (kind, doc) =
            (if serde.other { "Value".to_owned() } else { crate::shown(&field.ty) }, crate::doc(&field.attrs));
        Some(quote! {
            ::plugin_api::manifest::FieldManifest {
                name: #name.to_owned(),
                r#type: #kind.to_owned(),
                doc: #doc.to_owned(),
                optional: #optional,
            },
        })
    });
    told.collect()
}

pub(crate) fn leaves_of(fields: &Fields) -> Vec<Type> {
    let mut found = Vec::new();
    for field in fields.iter().filter(|field| !Serde::read(&field.attrs).skip) {
        leaves(&field.ty, &mut found);
    }
    found
}

/// Collects the types without parameters of their own that make up a type.
pub(crate) fn leaves(kind: &Type, found: &mut Vec<Type>) {
    match kind {
        Type::Path(path) if path.qself.is_none() => {
            let Some(last) = path.path.segments.last() else { return };
            match &last.arguments {
                PathArguments::None => {
                    let known = last.ident == "Self" || found.iter().any(|of| crate::shown(of) == crate::shown(kind));
                    found.extend((!known).then(|| kind.clone()));
                }
                PathArguments::AngleBracketed(of) => {
                    for argument in &of.args {
                        if let GenericArgument::Type(of) = argument {
                            leaves(of, found);
                        }
                    }
                }
                _ => {}
            }
        }
        Type::Reference(of) => leaves(&of.elem, found),
        Type::Slice(of) => leaves(&of.elem, found),
        Type::Array(of) => leaves(&of.elem, found),
        Type::Paren(of) => leaves(&of.elem, found),
        Type::Group(of) => leaves(&of.elem, found),
        Type::Tuple(of) => of.elems.iter().for_each(|of| leaves(of, found)),
        _ => {}
    }
}

/// Generates code that lets each of these types describe itself.
pub(crate) fn probes(leaves: &[Type]) -> TokenStream {
    quote! {
        #[allow(unused_imports)]
        use ::plugin_api::__private::{Far as _, Near as _, NearObject as _};
        #(
            (&::plugin_api::__private::Probe::<#leaves>::new()).data(into);
            (&::plugin_api::__private::Probe::<#leaves>::new()).object(into);
        )*
    }
}
