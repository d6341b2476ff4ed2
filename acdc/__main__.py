from acdc.cli import main

main()
