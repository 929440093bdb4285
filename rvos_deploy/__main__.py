"""Run the command line: ``python -m rvos_deploy`` is ``rvos-deploy``."""

from rvos_deploy.cli.app import main

if __name__ == "__main__":
    main()
