from bifusion_hf.cli.render_rooms import main


if __name__ == "__main__":
    main()
