from bifusion_hf.cli.rooms_matrix import main


if __name__ == "__main__":
    main()
