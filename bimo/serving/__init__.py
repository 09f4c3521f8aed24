"""Models as a service: an HTTP front in the dialect of OpenAI, and a page to use and watch them."""
