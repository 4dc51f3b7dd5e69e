"""The API's calls as operations, and flows of several calls, by resource."""
