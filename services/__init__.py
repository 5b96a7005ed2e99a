"""Ray Serve applications (generator, expert, HTTP), the policy store and their typed clients."""
