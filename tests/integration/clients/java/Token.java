import com.azure.core.credential.TokenRequestContext;
import com.azure.identity.ManagedIdentityCredentialBuilder;

/** Prints a token of this machine's managed identity, by azure-identity for Java. Argument: a client ID, or none. */
public class Token {
    public static void main(String[] arguments) {
        var builder = new ManagedIdentityCredentialBuilder();
        if (arguments.length > 0) {
            builder.clientId(arguments[0]);
        }
        var request = new TokenRequestContext().addScopes("https://vault.azure.net/.default");
        System.out.println(builder.build().getTokenSync(request).getToken());
    }
}
