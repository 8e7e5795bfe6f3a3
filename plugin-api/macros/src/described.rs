//! `#[derive(Described)]`, and what other macros tell of types.

use proc_macro2::TokenStream;
use quote::quote;
use syn::{Attribute, Data, DeriveInput, Error, Fields, GenericArgument, LitStr, PathArguments, Result, Type};

pub(crate) fn expand(item: TokenStream) -> Result<TokenStream> {
    let input: DeriveInput = syn::parse2(item)?;
    if !input.generics.params.is_empty() {
        return Err(Error::new(input.ident.span(), "what is described is one type, without parameters of its own"));
    }
    let (me, doc, serde) = (&input.ident, crate::doc(&input.attrs), Serde::read(&input.attrs));
    let name = me.to_string();
    // A name with a module is a class; any other stays the type's own business.
    let class = serde.rename.clone().filter(|name| name.contains('.')).unwrap_or_default();
    let (fields, variants, leaves) = match &input.data {
        Data::Struct(data) if !serde.other => {
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
                    .unwrap_or_else(|| cased(&variant.ident.to_string(), serde.rename_all.as_deref(), true));
                let (doc, fields) = (crate::doc(&variant.attrs), fields(&variant.fields, own.rename_all.as_deref()));
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
        // It is written in another way than its fields say.
        Data::Struct(_) | Data::Enum(_) => (quote!(), quote!(), Vec::new()),
        Data::Union(_) => return Err(Error::new(me.span(), "a union has no fields that could be told of")),
    };
    let probes = probes(&leaves);
    Ok(quote! {
        impl ::plugin_api::Described for #me {
            fn describe(into: &mut ::plugin_api::__private::Descriptions) {
                let new = into.data(::plugin_api::manifest::TypeManifest {
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

/// What serde is told, as far as it says how things are called.
#[derive(Default)]
struct Serde {
    rename: Option<String>,
    rename_all: Option<String>,
    skip: bool,
    /// It may be left out.
    optional: bool,
    /// It is written in another way: untagged, transparent, by another type.
    other: bool,
}

impl Serde {
    fn read(attributes: &[Attribute]) -> Self {
        let mut all = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("serde")) {
            // What cannot be read here serde's own macro tells of.
            let _ = attribute.parse_nested_meta(|meta| {
                let text =
                    |meta: &syn::meta::ParseNestedMeta<'_>| meta.value()?.parse::<LitStr>().map(|text| text.value());
                if meta.path.is_ident("rename") && meta.input.peek(syn::Token![=]) {
                    all.rename = Some(text(&meta)?);
                } else if meta.path.is_ident("rename_all") && meta.input.peek(syn::Token![=]) {
                    all.rename_all = Some(text(&meta)?);
                } else {
                    all.optional |= meta.path.is_ident("skip_serializing_if");
                    all.skip |= ["skip", "skip_serializing"].iter().any(|word| meta.path.is_ident(word));
                    all.other |= [
                        "untagged",
                        "transparent",
                        "into",
                        "from",
                        "try_from",
                        "tag",
                        "flatten",
                        "with",
                        "serialize_with",
                    ]
                    .iter()
                    .any(|word| meta.path.is_ident(word));
                    // What follows is of no account: it is read to its end.
                    if meta.input.peek(syn::Token![=]) {
                        let _: syn::Expr = meta.value()?.parse()?;
                    } else if meta.input.peek(syn::token::Paren) {
                        let rest;
                        syn::parenthesized!(rest in meta.input);
                        let _: TokenStream = rest.parse()?;
                    }
                }
                Ok(())
            });
        }
        all
    }
}

/// A name as serde's `rename_all` has it. `variant`: it is written as a type's; if not, as a field's.
fn cased(name: &str, case: Option<&str>, variant: bool) -> String {
    let name = name.trim_start_matches("r#");
    let Some(case) = case else { return name.to_owned() };
    let mut words: Vec<String> = Vec::new();
    if variant {
        for letter in name.chars() {
            match words.last_mut() {
                Some(word) if !letter.is_uppercase() => word.push(letter),
                _ => words.push(letter.to_lowercase().collect()),
            }
        }
    } else {
        words.extend(name.split('_').filter(|word| !word.is_empty()).map(str::to_lowercase));
    }
    let capital = |word: &String| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
    };
    match case {
        "lowercase" => words.concat(),
        "UPPERCASE" => words.concat().to_uppercase(),
        "PascalCase" => words.iter().map(capital).collect(),
        "camelCase" => {
            words.iter().enumerate().map(|(at, word)| if at == 0 { word.clone() } else { capital(word) }).collect()
        }
        "SCREAMING_SNAKE_CASE" => words.join("_").to_uppercase(),
        "kebab-case" => words.join("-"),
        "SCREAMING-KEBAB-CASE" => words.join("-").to_uppercase(),
        _ => words.join("_"),
    }
}

/// Fields with names, as manifests.
pub(crate) fn fields(fields: &Fields, case: Option<&str>) -> TokenStream {
    let Fields::Named(named) = fields else { return quote!() };
    let told = named.named.iter().filter_map(|field| {
        let serde = Serde::read(&field.attrs);
        if serde.skip {
            return None;
        }
        let (own, optional) = (field.ident.as_ref()?.to_string(), serde.optional);
        let name = serde.rename.unwrap_or_else(|| cased(&own, case, false));
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

/// The types that a type is made of, which have no parameters of their own.
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

/// Asks each of these types what it has to tell.
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
