//! `#[mind]`.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{Error, FnArg, ItemTrait, LitStr, Pat, Result, ReturnType, TraitItem};

use crate::described::{leaves, probes};

const USAGE: &str =
    "a method of a mind is `fn told(&self, …);`, which waits for nothing, or `async fn ask(&self, …) -> Result<T>;`";

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    if !attribute.is_empty() {
        return Err(Error::new(attribute.span(), "#[mind] takes nothing: write #[mind]"));
    }
    let mut of: ItemTrait = syn::parse2(item)
        .map_err(|error| Error::new(error.span(), format!("#[mind] stands before a `trait`: {error}")))?;
    if !of.generics.params.is_empty() || !of.supertraits.is_empty() {
        return Err(Error::new(of.ident.span(), "a mind is a trait of its own, without parameters"));
    }
    let (mut methods, mut manifests, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for item in &mut of.items {
        let TraitItem::Fn(method) = item else { return Err(Error::new(item.span(), USAGE)) };
        if let Some(body) = &method.default {
            return Err(Error::new(body.span(), "the client has the method: there is nothing to write here"));
        }
        let (body, manifest) = self::method(method, &of.vis, &mut found)?;
        methods.push(body);
        manifests.push(manifest);
    }
    let (me, visible, doc) = (&of.ident, &of.vis, crate::doc(&of.attrs));
    let (attributes, name, probes) = (&of.attrs, me.to_string(), probes(&found));
    Ok(quote! {
        #(#attributes)*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #visible struct #me(::plugin_api::Remote);

        #[allow(dead_code, reason = "a client has more than is called")]
        impl #me {
            #(#methods)*

            /// The client's object itself.
            #[must_use]
            #visible fn remote(&self) -> &::plugin_api::Remote {
                &self.0
            }
        }

        impl ::core::convert::From<::plugin_api::Remote> for #me {
            fn from(remote: ::plugin_api::Remote) -> Self {
                Self(remote)
            }
        }

        const _: () = {
            use ::plugin_api::__private::serde;

            impl serde::Serialize for #me {
                fn serialize<S: serde::Serializer>(&self, serializer: S) -> ::core::result::Result<S::Ok, S::Error> {
                    serde::Serialize::serialize(&self.0, serializer)
                }
            }

            impl<'de> serde::Deserialize<'de> for #me {
                fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> ::core::result::Result<Self, D::Error> {
                    serde::Deserialize::deserialize(deserializer).map(Self)
                }
            }
        };

        impl ::plugin_api::__private::MindType for #me {
            fn describe(into: &mut ::plugin_api::__private::Descriptions) {
                const METHODS: &[::plugin_api::__private::Method] = &[#(#manifests),*];
                let new = into.mind(::plugin_api::manifest::MindManifest {
                    name: #name.to_owned(),
                    doc: #doc.to_owned(),
                    methods: METHODS.iter().map(::core::convert::Into::into).collect(),
                });
                if new {
                    #probes
                }
            }
        }
    })
}

/// A method, and its description.
fn method(
    method: &mut syn::TraitItemFn,
    visible: &syn::Visibility,
    found: &mut Vec<syn::Type>,
) -> Result<(TokenStream, TokenStream)> {
    crate::no_cfg(&method.attrs)?;
    let mut called = None;
    for attribute in method.attrs.iter().filter(|of| of.path().is_ident("method")) {
        called = Some(attribute.parse_args::<LitStr>().map_err(|error| {
            Error::new(error.span(), "write #[method(\"name\")]: the name by which the client has it")
        })?);
    }
    method.attrs.retain(|of| !of.path().is_ident("method"));
    let signature = &method.sig;
    if signature.ident == "remote" {
        let message =
            "every mind already has a `remote`: choose another name, and write #[method(\"remote\")] before it";
        return Err(Error::new(signature.ident.span(), message));
    }
    if !signature.generics.params.is_empty() {
        return Err(Error::new(signature.generics.span(), "a method of a mind has no type parameters"));
    }
    let mut inputs = signature.inputs.iter();
    match inputs.next() {
        Some(FnArg::Receiver(receiver)) if crate::shown(receiver) == "&self" => {}
        _ => return Err(Error::new(signature.span(), USAGE)),
    }
    let (mut names, mut parameters) = (Vec::new(), Vec::new());
    for input in inputs {
        let FnArg::Typed(argument) = input else { continue };
        let Pat::Ident(pattern) = &*argument.pat else {
            return Err(Error::new(argument.pat.span(), "an argument needs a name"));
        };
        let (name, shown) = (pattern.ident.to_string(), crate::shown(&argument.ty));
        parameters.push(quote!(::plugin_api::__private::Parameter { name: #name, r#type: #shown }));
        names.push(pattern.ident.clone());
        leaves(&argument.ty, found);
    }
    let waits = signature.asyncness.is_some();
    let returns = match (&signature.output, waits) {
        (ReturnType::Default, false) => String::new(),
        (ReturnType::Type(_, kind), true) if crate::perspective::is_result(kind) => {
            leaves(kind, found);
            crate::shown(kind)
        }
        _ => return Err(Error::new(signature.span(), USAGE)),
    };
    let name =
        called.map_or_else(|| signature.ident.to_string().trim_start_matches("r#").to_owned(), |name| name.value());
    let doc = crate::doc(&method.attrs);
    let (ident, typed, output) = (&signature.ident, signature.inputs.iter().skip(1), &signature.output);
    let (attributes, word) = (&method.attrs, if waits { "call" } else { "notify" });
    let word = format_ident!("{word}");
    let body = match waits {
        true => quote! {
            #(#attributes)*
            #visible async fn #ident(&self, #(#typed),*) #output {
                self.0.#word(#name, (#(#names,)*)).await
            }
        },
        false => quote! {
            #(#attributes)*
            #visible fn #ident(&self, #(#typed),*) -> ::plugin_api::Result<()> {
                self.0.#word(#name, (#(#names,)*))
            }
        },
    };
    let manifest = quote! {
        ::plugin_api::__private::Method {
            name: #name,
            doc: #doc,
            parameters: &[#(#parameters),*],
            returns: #returns,
            changes: false,
            raises: &[],
        }
    };
    Ok((body, manifest))
}
