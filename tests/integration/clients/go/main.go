// Prints a token of this machine's managed identity, by azidentity for Go. Argument: a client ID, or none.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
)

func main() {
	options := &azidentity.ManagedIdentityCredentialOptions{}
	if len(os.Args) > 1 {
		options.ID = azidentity.ClientID(os.Args[1])
	}
	credential, err := azidentity.NewManagedIdentityCredential(options)
	if err == nil {
		request := policy.TokenRequestOptions{Scopes: []string{"https://vault.azure.net/.default"}}
		token, failure := credential.GetToken(context.Background(), request)
		if err = failure; err == nil {
			fmt.Println(token.Token)
			return
		}
	}
	fmt.Println(err)
	os.Exit(1)
}
