//! `#[service("name")]`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::parse::{Parse, ParseStream};
use syn::spanned::Spanned;
use syn::{Error, Ident, ImplItem, ItemImpl, LitStr, Result, Token, Type};

/// The maximum length of a name, in bytes of UTF-8.
const NAME_LIMIT: usize = 255;

struct Attribute {
    name: LitStr,
    save: Option<LitStr>,
    shared: bool,
    needs: Vec<LitStr>,
    permissions: Vec<LitStr>,
    copyables: Vec<LitStr>,
    mind: Option<Type>,
}

impl Parse for Attribute {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        const USAGE: &str = "write #[service(\"name\")]; after the name may stand save = \"call\", \"detach\" or \"never\", shared, needs = [\"other\"], permissions = [\"net:tcp:443\"], copyables = [\"module.Class\"], and mind = Ear";
        let name: LitStr = input.parse().map_err(|error| Error::new(error.span(), USAGE))?;
        let mut attribute = Self {
            name,
            save: None,
            shared: false,
            needs: Vec::new(),
            permissions: Vec::new(),
            copyables: Vec::new(),
            mind: None,
        };
        while !input.is_empty() {
            input.parse::<Token![,]>()?;
            if input.is_empty() {
                break;
            }
            let word: Ident = input.parse()?;
            match word.to_string().as_str() {
                "save" => {
                    input.parse::<Token![=]>()?;
                    attribute.save = Some(input.parse()?);
                }
                "shared" => attribute.shared = true,
                "needs" => attribute.needs = names(input)?,
                "permissions" => attribute.permissions = names(input)?,
                "mind" => {
                    input.parse::<Token![=]>()?;
                    attribute.mind = Some(input.parse()?);
                }
                "copyables" => {
                    attribute.copyables = names(input)?;
                    if let Some(plain) = attribute.copyables.iter().find(|name| !name.value().contains('.')) {
                        return Err(Error::new(plain.span(), "a class is named with its module: \"module.Class\""));
                    }
                }
                other => {
                    return Err(Error::new(word.span(), format!("{other} is not an option of a service: {USAGE}")));
                }
            }
        }
        Ok(attribute)
    }
}

/// `= ["one", "other"]`.
fn names(input: ParseStream<'_>) -> Result<Vec<LitStr>> {
    input.parse::<Token![=]>()?;
    let list;
    syn::bracketed!(list in input);
    let names = list.parse_terminated(|name| name.parse::<LitStr>(), Token![,])?;
    Ok(names.into_iter().collect())
}

pub(crate) fn expand(attribute: TokenStream, item: TokenStream) -> Result<TokenStream> {
    let attribute: Attribute = syn::parse2(attribute)?;
    let name = attribute.name.value();
    if name.is_empty() || name.len() > NAME_LIMIT || name.contains('/') || name.chars().any(char::is_control) {
        let message = "a service's name has 1 to 255 bytes, no `/` and no control characters";
        return Err(Error::new(attribute.name.span(), message));
    }
    let save = match attribute.save.as_ref().map(LitStr::value).as_deref() {
        None | Some("call") => quote!(Call),
        Some("detach") => quote!(Detach),
        Some("never") => quote!(Never),
        Some(_) => {
            let message = "a perspective is saved on \"call\", on \"detach\" or \"never\"";
            return Err(Error::new(attribute.save.span(), message));
        }
    };
    let never = save.to_string() == "Never";
    let block: ItemImpl = syn::parse2(item)
        .map_err(|error| Error::new(error.span(), format!("#[service] stands before `impl Service for …`: {error}")))?;
    if block.trait_.as_ref().and_then(|of| of.0.segments.last()).is_none_or(|of| of.ident != "Service") {
        return Err(Error::new(block.self_ty.span(), "#[service] stands before `impl Service for …`"));
    }
    let me = &block.self_ty;
    let perspective = perspective(&block)?;
    let has =
        |name: &str| block.items.iter().any(|item| matches!(item, ImplItem::Fn(method) if method.sig.ident == name));
    let mut filled = Vec::new();
    let mut fill = |name: &str, tokens: TokenStream| {
        if !has(name) {
            filled.push(tokens);
        }
    };
    let (context, handle, result) =
        (quote!(::plugin_api::Context<Self>), quote!(::plugin_api::Handle), quote!(::plugin_api::Result));
    fill(
        "init",
        quote! {
            fn init(_: &#context, _: &::plugin_api::Config) -> #result<Self> {
                ::core::result::Result::Ok(<Self as ::core::default::Default>::default())
            }
        },
    );
    fill(
        "start",
        quote! {
            async fn start(_: #handle<Self>, _: #context) -> #result<()> {
                ::core::result::Result::Ok(())
            }
        },
    );
    fill(
        "stop",
        quote! {
            async fn stop(_: #handle<Self>, _: #context) {}
        },
    );
    fill(
        "perspective",
        quote! {
            fn perspective(&self, _: &str) -> #result<#perspective> {
                ::core::result::Result::Ok(<#perspective as ::core::default::Default>::default())
            }
        },
    );
    fill(
        "attached",
        quote! {
            fn attached(
                _: &#context,
                perspective: #handle<#perspective>,
                _: &::plugin_api::Attachment,
            ) -> #result<#handle<#perspective>> {
                ::core::result::Result::Ok(perspective)
            }
        },
    );
    fill(
        "detached",
        quote! {
            fn detached(_: &#context, _: #handle<#perspective>, _: &::plugin_api::Attachment) {}
        },
    );
    fill(
        "health",
        quote! {
            fn health(_: &#handle<Self>) -> #result<()> {
                ::core::result::Result::Ok(())
            }
        },
    );
    fill(
        "rebuild",
        quote! {
            async fn rebuild(_: #context, name: ::std::string::String) -> #result<::plugin_api::AnyHandle> {
                ::core::result::Result::Err(::plugin_api::Fault::value(::std::format!("no object is named {name}")))
            }
        },
    );
    for name in ["migrate", "migrate_shared"] {
        let method = Ident::new(name, proc_macro2::Span::call_site());
        fill(
            name,
            quote! {
                fn #method(state: ::plugin_api::Value) -> #result<::plugin_api::Value> {
                    ::core::result::Result::Ok(state)
                }
            },
        );
    }
    let unsaved = quote!(::core::result::Result::Err(::plugin_api::Fault::new("RuntimeError", "it is never saved")));
    let (save_perspective, load_perspective) = if never {
        (quote!({ let _ = perspective; #unsaved }), quote!({ let _ = state; #unsaved }))
    } else {
        // If serde cannot save the type, the compiler reports it there.
        let at = perspective.span();
        let load = if has("migrate") {
            quote_spanned!(at=> ::plugin_api::__private::load_migrated::<#perspective>(state, <Self as ::plugin_api::Service>::migrate))
        } else {
            quote_spanned!(at=> ::plugin_api::__private::load::<#perspective>(state))
        };
        (quote_spanned!(at=> ::plugin_api::__private::save::<#perspective>(perspective)), load)
    };
    let shared = attribute.shared;
    let (needs, permissions, copyables) = (&attribute.needs, &attribute.permissions, &attribute.copyables);
    let (save_service, load_service) = if shared {
        let load = if has("migrate_shared") {
            quote!(::plugin_api::__private::load_migrated(state, <Self as ::plugin_api::Service>::migrate_shared))
        } else {
            quote!(::plugin_api::__private::load(state))
        };
        (quote!(::plugin_api::__private::save(self)), load)
    } else {
        (unsaved.clone(), quote!({ let _ = state; #unsaved }))
    };
    let doc = crate::doc(&block.attrs);
    let describes = attribute.mind.as_ref().map(|mind| {
        quote_spanned! {mind.span()=>
            fn describe(into: &mut ::plugin_api::__private::Descriptions) {
                <#mind as ::plugin_api::__private::MindType>::describe(into);
            }
        }
    });
    let ItemImpl { attrs, items, generics, .. } = &block;
    Ok(quote! {
        #(#attrs)*
        impl #generics ::plugin_api::Service for #me {
            const NAME: &'static str = #name;
            const SAVE: ::plugin_api::Save = ::plugin_api::Save::#save;
            const SHARED: bool = #shared;
            const NEEDS: &'static [&'static str] = &[#(#needs),*];
            const PERMISSIONS: &'static [&'static str] = &[#(#permissions),*];
            const COPYABLES: &'static [&'static str] = &[#(#copyables),*];
            const DOC: &'static str = #doc;
            #describes
            #(#items)*
            #(#filled)*
            fn save_perspective(perspective: &#perspective) -> #result<::std::vec::Vec<u8>> { #save_perspective }
            fn load_perspective(state: &[u8]) -> #result<#perspective> { #load_perspective }
            fn save_service(&self) -> #result<::std::vec::Vec<u8>> { #save_service }
            fn load_service(state: &[u8]) -> #result<Self> { #load_service }
        }

        impl ::plugin_api::Served for #perspective {
            type Service = #me;
        }
    })
}

fn perspective(block: &ItemImpl) -> Result<&Type> {
    block
        .items
        .iter()
        .find_map(|item| match item {
            ImplItem::Type(of) if of.ident == "Perspective" => Some(&of.ty),
            _ => None,
        })
        .ok_or_else(|| Error::new(block.self_ty.span(), "a service names its perspective: `type Perspective = …;`"))
}
