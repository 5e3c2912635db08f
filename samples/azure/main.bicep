// What deploy.sh makes inside a resource group, as one deployment; README.md says how it differs from the script.
// main.json is the same as an ARM template. Both are written by hand, and a test holds them equal.
// The names that az chooses for the network of a VM are kept, so that deploy.sh finds what this made.

targetScope = 'resourceGroup'

@description('Region of everything.')
param location string = resourceGroup().location

@description('Name of the VM.')
@minLength(2)
@maxLength(64)
param vmName string = 'vm-imds-demo'

@description('Size of the VM.')
param vmSize string = 'Standard_D2s_v3'

@description('User on the VM.')
param adminUsername string = 'azureuser'

@description('Public key of that user, RSA or Ed25519: the contents of the .pub file.')
param sshPublicKey string

@description('Address range that may reach port 22; * is any address.')
param sshFrom string = '*'

@description('Name of the user-assigned identity.')
param identityName string = 'id-imds-demo'

@description('Name of the Key Vault, unique in all of Azure.')
@minLength(3)
@maxLength(24)
param vaultName string

@description('Name of the secret.')
param secretName string = 'demo-secret'

@description('Value of the secret. Give it in a parameters file, never on a command line.')
@secure()
param secretValue string

@description('Object id of who may write secrets later; empty gives that role to nobody.')
param deployerObjectId string = ''

@description('What that object id belongs to.')
@allowed([
  'User'
  'ServicePrincipal'
])
param deployerType string = 'User'

// Built-in roles: https://learn.microsoft.com/azure/key-vault/general/rbac-guide
var secretsUser = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '4633458b-17de-408a-b874-0445c86b69e6')
var secretsOfficer = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'b86a8fe4-44ce-4948-aee5-eccb2c155cd7')

resource securityGroup 'Microsoft.Network/networkSecurityGroups@2024-05-01' = {
  name: '${vmName}-nsg'
  location: location
  properties: {
    securityRules: [
      {
        name: 'ssh'
        properties: {
          priority: 1000
          direction: 'Inbound'
          access: 'Allow'
          protocol: 'Tcp'
          sourceAddressPrefix: sshFrom
          sourcePortRange: '*'
          destinationAddressPrefix: '*'
          destinationPortRange: '22'
        }
      }
    ]
  }
}

resource network 'Microsoft.Network/virtualNetworks@2024-05-01' = {
  name: '${vmName}VNET'
  location: location
  properties: {
    addressSpace: {
      addressPrefixes: [
        '10.0.0.0/16'
      ]
    }
    subnets: [
      {
        name: '${vmName}Subnet'
        properties: {
          addressPrefix: '10.0.0.0/24'
        }
      }
    ]
  }
}

resource publicAddress 'Microsoft.Network/publicIPAddresses@2024-05-01' = {
  name: '${vmName}PublicIP'
  location: location
  sku: {
    name: 'Standard'
  }
  properties: {
    publicIPAllocationMethod: 'Static'
  }
}

resource networkInterface 'Microsoft.Network/networkInterfaces@2024-05-01' = {
  name: '${vmName}VMNic'
  location: location
  properties: {
    networkSecurityGroup: {
      id: securityGroup.id
    }
    ipConfigurations: [
      {
        name: 'ipconfig${vmName}'
        properties: {
          privateIPAllocationMethod: 'Dynamic'
          subnet: {
            id: network.properties.subnets[0].id
          }
          publicIPAddress: {
            id: publicAddress.id
          }
        }
      }
    ]
  }
}

resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2024-11-30' = {
  name: identityName
  location: location
}

resource vm 'Microsoft.Compute/virtualMachines@2024-07-01' = {
  name: vmName
  location: location
  identity: {
    type: 'SystemAssigned, UserAssigned'
    userAssignedIdentities: {
      '${identity.id}': {}
    }
  }
  properties: {
    hardwareProfile: {
      vmSize: vmSize
    }
    securityProfile: {
      securityType: 'TrustedLaunch'
      uefiSettings: {
        secureBootEnabled: true
        vTpmEnabled: true
      }
    }
    storageProfile: {
      // https://documentation.ubuntu.com/azure/azure-how-to/instances/find-ubuntu-images/
      imageReference: {
        publisher: 'Canonical'
        offer: 'ubuntu-24_04-lts'
        sku: 'server'
        version: 'latest'
      }
      osDisk: {
        createOption: 'FromImage'
        managedDisk: {
          storageAccountType: 'StandardSSD_LRS'
        }
      }
    }
    osProfile: {
      computerName: vmName
      adminUsername: adminUsername
      linuxConfiguration: {
        disablePasswordAuthentication: true
        ssh: {
          publicKeys: [
            {
              path: '/home/${adminUsername}/.ssh/authorized_keys'
              keyData: sshPublicKey
            }
          ]
        }
      }
    }
    networkProfile: {
      networkInterfaces: [
        {
          id: networkInterface.id
        }
      ]
    }
  }
}

resource vault 'Microsoft.KeyVault/vaults@2023-07-01' = {
  name: vaultName
  location: location
  properties: {
    tenantId: subscription().tenantId
    sku: {
      family: 'A'
      name: 'standard'
    }
    enableRbacAuthorization: true
    softDeleteRetentionInDays: 7
  }
}

// Written through Azure Resource Manager, so the deployer needs no role on the vault's data.
resource secret 'Microsoft.KeyVault/vaults/secrets@2023-07-01' = {
  parent: vault
  name: secretName
  properties: {
    value: secretValue
  }
}

// principalType spares a wait until the new principal is replicated:
// https://learn.microsoft.com/azure/role-based-access-control/role-assignments-template
resource systemAssignedReads 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: vault
  name: guid(vault.id, vm.id, secretsUser)
  properties: {
    roleDefinitionId: secretsUser
    principalId: vm.identity.principalId
    principalType: 'ServicePrincipal'
  }
}

resource userAssignedReads 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: vault
  name: guid(vault.id, identity.id, secretsUser)
  properties: {
    roleDefinitionId: secretsUser
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

resource deployerWrites 'Microsoft.Authorization/roleAssignments@2022-04-01' = if (!empty(deployerObjectId)) {
  scope: vault
  name: guid(vault.id, deployerObjectId, secretsOfficer)
  properties: {
    roleDefinitionId: secretsOfficer
    principalId: deployerObjectId
    principalType: deployerType
  }
}

output host string = publicAddress.properties.ipAddress
output vaultUrl string = vault.properties.vaultUri
output clientId string = identity.properties.clientId
output objectId string = identity.properties.principalId
output resourceId string = identity.id
