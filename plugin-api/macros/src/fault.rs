//! `#[derive(Fault)]`.

use crate::described::{Serde, fields, leaves_of, probes};
use proc_macro2::TokenStream;
use quote::quote;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, LitStr, Result, Token};

/// Names that every failure already has. A field of such a name would replace the failure's own.
const TAKEN: [&str; 12] = [
    "type",
    "value",
    "parents",
    "traceback",
    "tb",
    "frames",
    "stack",
    "count",
    "unsafeTracebacks",
    "captureVars",
    "pickled",
    "_frames",
];

struct Attribute {
    class: LitStr,
    message: Option<LitStr>,
    parents: Vec<LitStr>,
    instance: bool,
}

impl Attribute {
    fn read(input: &DeriveInput) -> Result<Self> {
        const USAGE: &str = "write #[fault(class = \"module.Class\")]; message = \"…\", parents = [\"…\"] and instance \
                             may follow";
        let (mut class, mut message, mut parents, mut instance) = (None, None, Vec::new(), false);
        for attribute in input.attrs.iter().filter(|attribute| attribute.path().is_ident("fault")) {
            attribute.parse_nested_meta(|meta| {
                if meta.path.is_ident("class") {
                    class = Some(meta.value()?.parse::<LitStr>()?);
                } else if meta.path.is_ident("message") {
                    message = Some(meta.value()?.parse::<LitStr>()?);
                } else if meta.path.is_ident("parents") {
                    let value = meta.value()?;
                    let list;
                    syn::bracketed!(list in value);
                    parents = Punctuated::<LitStr, Token![,]>::parse_terminated(&list)?.into_iter().collect();
                } else if meta.path.is_ident("instance") {
                    instance = true;
                } else {
                    return Err(meta.error(USAGE));
                }
                Ok(())
            })?;
        }
        let class: LitStr = class.ok_or_else(|| Error::new(input.ident.span(), USAGE))?;
        if instance && !class.value().contains('.') {
            return Err(Error::new(class.span(), "an instance needs a class with its module: \"module.Class\""));
        }
        Ok(Self { class, message, parents, instance })
    }
}

pub(crate) fn expand(item: TokenStream) -> Result<TokenStream> {
    let input: DeriveInput = syn::parse2(item)?;
    let Attribute { class, message, parents, instance } = Attribute::read(&input)?;
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(input.ident.span(), "a fault is a struct: one class, one type"));
    };
    let names: Vec<_> = match &data.fields {
        Fields::Named(fields) => fields.named.iter().filter_map(|field| field.ident.as_ref()).collect(),
        Fields::Unit => Vec::new(),
        Fields::Unnamed(fields) => {
            return Err(Error::new(fields.span(), "the fields of a fault have names: clients read them by these"));
        }
    };
    if !instance && let Some(taken) = names.iter().find(|name| TAKEN.iter().any(|of| *name == of)) {
        return Err(Error::new(taken.span(), format!("every failure already has a {taken}: choose another name")));
    }
    let me = &input.ident;
    let (impl_generics, type_generics, bounds) = input.generics.split_for_impl();
    let written = message.clone();
    let message = message.map_or_else(
        || quote!(::std::string::String::new()),
        |message| {
            quote! {{
                #[allow(unused_variables)]
                let #me { #(#names),* } = &fault;
                ::std::format!(#message)
            }}
        },
    );
    let (doc, told, probes) = (
        crate::doc(&input.attrs),
        fields(&data.fields, Serde::read(&input.attrs).rename_all.as_deref()),
        probes(&leaves_of(&data.fields)),
    );
    let (text, under) = (written.map(|text| plain(&text.value())).unwrap_or_default(), &parents);
    let describes = quote! {
        impl #impl_generics ::plugin_api::__private::Raises for #me #type_generics #bounds {
            const CLASS: &'static str = #class;

            fn describe(into: &mut ::plugin_api::__private::Descriptions) {
                let new = into.fault(::plugin_api::manifest::FaultManifest {
                    class: #class.to_owned(),
                    parents: ::std::vec![#(#under.to_owned()),*],
                    message: #text.to_owned(),
                    doc: #doc.to_owned(),
                    fields: ::std::vec![#told],
                });
                if new {
                    #probes
                }
            }
        }
    };
    let parents = (!parents.is_empty()).then(|| quote!(let made = made.with_parents([#(#parents),*]);));
    let fields = (!names.is_empty()).then(|| quote!(let made = made.with_fields(&fault);));
    let whole = instance.then(|| quote!(let made = made.as_instance();));
    Ok(quote! {
        #describes

        impl #impl_generics ::core::convert::From<#me #type_generics> for ::plugin_api::Fault #bounds {
            #[track_caller]
            fn from(fault: #me #type_generics) -> Self {
                let made = ::plugin_api::Fault::new(#class, #message);
                #parents
                #fields
                #whole
                made
            }
        }
    })
}

/// A message with the names of its fields, but without their format: `{to:?}` becomes `{to}`.
fn plain(message: &str) -> String {
    let (mut out, mut inside, mut skips) = (String::new(), false, false);
    for letter in message.chars() {
        match letter {
            '{' => inside = true,
            '}' => (inside, skips) = (false, false),
            ':' if inside => skips = true,
            _ => {}
        }
        out.extend((!skips).then_some(letter));
    }
    out
}
