//! Prints a token of this machine's managed identity, by azure_identity for Rust. Argument: a client ID, or none.
use azure_core::credentials::TokenCredential;
use azure_identity::{ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId};

#[tokio::main(flavor = "current_thread")]
async fn main() -> azure_core::Result<()> {
    let options = ManagedIdentityCredentialOptions {
        user_assigned_id: std::env::args().nth(1).map(UserAssignedId::ClientId),
        ..Default::default()
    };
    let credential = ManagedIdentityCredential::new(Some(options))?;
    let token = credential.get_token(&["https://vault.azure.net/.default"], None).await?;
    println!("{}", token.token.secret());
    Ok(())
}
