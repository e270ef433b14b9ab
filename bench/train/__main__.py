"""``python -m train``. Processes that make batches read this file, too, and are to load nothing but numpy."""

if __name__ == "__main__":
    from .command import main

    main()
