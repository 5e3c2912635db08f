"""Azure OpenAI without a key.  Usage: openai_chat.py ENDPOINT DEPLOYMENT QUESTION."""

import sys

from openai import AzureOpenAI

from azure_imds_credential import ImdsCredential

if __name__ == "__main__":
    endpoint, deployment, question = sys.argv[1:]
    client = AzureOpenAI(
        azure_endpoint=endpoint,
        azure_ad_token_provider=ImdsCredential().token_provider("https://cognitiveservices.azure.com/.default"),
        api_version="2024-10-21",
    )
    answer = client.chat.completions.create(model=deployment, messages=[{"role": "user", "content": question}])
    print(answer.choices[0].message.content)
