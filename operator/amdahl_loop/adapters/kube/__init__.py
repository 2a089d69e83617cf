"""The loop on a cluster: everything that is read from and written to a Kubernetes API server.

Raw API objects (`Object`) stay in here: other rooms get frozen values.
"""
