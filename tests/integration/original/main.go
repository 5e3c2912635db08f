// Prints when the token of this machine's managed identity expires, by Microsoft's MSAL for Go.
//
// Arguments, all optional: a resource; the kind of a user-assigned identity's identifier, and the identifier.
package main

import (
	"context"
	"fmt"
	"os"

	mi "github.com/AzureAD/microsoft-authentication-library-for-go/apps/managedidentity"
)

func main() {
	arguments, id := append(os.Args[1:], "", "", "")[:3], mi.SystemAssigned()
	switch arguments[1] {
	case "client_id":
		id = mi.UserAssignedClientID(arguments[2])
	case "object_id":
		id = mi.UserAssignedObjectID(arguments[2])
	case "resource_id":
		id = mi.UserAssignedResourceID(arguments[2])
	}
	if arguments[0] == "" {
		arguments[0] = "https://management.azure.com"
	}
	client, err := mi.New(id)
	if err == nil {
		var result mi.AuthResult
		if result, err = client.AcquireToken(context.Background(), arguments[0]); err == nil {
			fmt.Println("token expire at : ", result.ExpiresOn)
			return
		}
	}
	fmt.Println(err)
	os.Exit(1)
}
