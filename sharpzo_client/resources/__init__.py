"""The API's resources, each as a blocking and an asynchronous class over the same flows."""
